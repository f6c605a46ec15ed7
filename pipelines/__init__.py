"""Pictures: the catalogue of models, the families and the step-batched engine. No HTTP, no database, no asyncio."""
