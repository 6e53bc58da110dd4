"""What a client might send instead of a request: any value under any name."""

from hypothesis import strategies as st

NAMES = [*"messages model temperature top_p max_tokens max_completion_tokens seed stop stream".split()]
NAMES += "stream_options n tools prompt input".split()
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["role", "content", "text", "type", "include_usage"]) | st.text(max_size=3),
            inner,
            max_size=3,
        )
    ),
    max_leaves=8,
)
