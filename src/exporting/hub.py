"""An exported folder -> a repository on the Hugging Face hub, private where it is new."""

from pathlib import Path

from src.errors import InputError


def check(repo: str) -> None:
    """Raises InputError where nothing could be pushed: a name that is none, no network, no token that the hub knows."""
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError  # type: ignore[attr-defined]
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(repo)
        whole_name = repo.count("/") == 1
    except HFValidationError:
        whole_name = False
    if not whole_name:
        raise InputError(f"hub={repo} must be <user>/<name>, of letters, digits, '-', '_' and '.'")
    if get_token() is None:
        raise InputError("hub= needs a token that may write: run `hf auth login`, or set HF_TOKEN")
    try:
        HfApi().whoami()
    except HfHubHTTPError as error:
        raise InputError(f"hub=: the hub does not accept the token ({_brief(error)}): run `hf auth login`") from None
    except (HTTPError, OSError) as error:
        raise InputError(
            f"hub=: the Hugging Face hub cannot be reached ({type(error).__name__}); leave hub= out, and send the "
            f"folder later with: hf upload {repo} <folder>"
        ) from None


def push(folder: Path, repo: str, run: str) -> str:
    """Upload a folder as one commit; the repository's address. Raises InputError where the hub refuses it."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]

    try:
        made = HfApi().create_repo(repo, private=True, exist_ok=True)
        HfApi().upload_folder(repo_id=repo, folder_path=folder, commit_message=f"Run {run}")
    except (HTTPError, OSError, ValueError) as error:
        raise InputError(
            f"{folder} is written, but not on the hub: {_brief(error)}; send it again with: hf upload {repo} {folder}"
        ) from None
    return str(made)


def _brief(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1].rstrip(".") if lines else type(error).__name__
