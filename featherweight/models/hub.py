"""One quick question to the Hugging Face hub before the libraries above it begin to load from it.

Without a network `huggingface_hub` asks six times, in 27 s, and the loaders above it ask again.
"""

from featherweight.models.quiet import quiet_hub


def require_hub(name: str, kind: str, file: str) -> None:
    """Return if the hub can be reached, whatever it answers: the loaders explain a missing name or a lack of access.

    Args:
        name: of the repository, as owner/name.
        kind: "model" or "dataset".
        file: a file that such a repository has.

    Raises:
        ConnectionError: if the hub cannot be reached, or not within 10 s.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        with quiet_hub():
            get_hf_file_metadata(hf_hub_url(name, file, repo_type=kind))
    except (HfHubHTTPError, HFValidationError):
        return
    except Exception as error:
        # Its class depends on the HTTP library, which differs between versions of huggingface_hub.
        raise ConnectionError(f"no such folder here, and the hub cannot be reached: {error}") from error
