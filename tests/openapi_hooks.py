"""For Schemathesis: where an address names something, let it often name something that is there."""

import json
import os
from typing import Any

import schemathesis
from hypothesis import strategies as st

KNOWN: list[dict[str, Any]] = json.loads(os.environ.get("DARKROOM_TEST_KNOWN", "[]"))
"""Values of path parameters, as sets that belong together."""


@schemathesis.hook
def before_generate_path_parameters(
    context: schemathesis.HookContext, strategy: st.SearchStrategy[dict[str, Any]]
) -> st.SearchStrategy[dict[str, Any]]:
    names = {parameter.name for parameter in context.operation.path_parameters}
    fitting = [known for known in KNOWN if names <= set(known)]
    if not fitting:
        return strategy
    return st.one_of(strategy, st.sampled_from([{name: known[name] for name in names} for known in fitting]))
