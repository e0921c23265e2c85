"""Uploads a finished folder to the Hugging Face hub, or to what HF_ENDPOINT names.

Only `archer export --push` calls this, after the folder passed its comparison. Token and address
are the hub library's own: HF_TOKEN or `hf auth login`, and HF_ENDPOINT.
"""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

OLD_WEIGHTS = ["*.safetensors", "*.safetensors.index.json"]
"""Removed by the same commit: other shards of an earlier upload would be loaded with the new."""


def check_target(name: str) -> None:
    """ValueError when it is clear before any work that nothing could be uploaded by this name."""
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise ValueError(f"--push {name!r} cannot be a name on the hub: {error}") from error
    if "/" not in name:
        raise ValueError(f"--push {name!r} has no namespace: give NAMESPACE/NAME")
    if constants.HF_HUB_OFFLINE:
        raise ValueError(f"--push {name!r} with HF_HUB_OFFLINE set: unset it, or leave --push out")
    if get_token() is None:
        raise ValueError(
            f"--push {name!r} needs a token of the hub: set HF_TOKEN or log in with `hf auth login`"
        )


def push(folder: Path, name: str) -> str:
    """Uploads all of the folder in one commit and returns the address.

    Raises ValueError when the hub refuses or cannot be reached; the folder stays as it is.
    """
    api = HfApi()
    try:
        api.create_repo(name, exist_ok=True)
        api.upload_folder(
            folder_path=folder,
            repo_id=name,
            commit_message="Exported by archer",
            delete_patterns=OLD_WEIGHTS,
        )
    except Exception as error:  # each HTTP library has its own for "no network"
        said = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(
            f"{folder} is written and checked, but {api.endpoint} did not take it as {name!r} "
            f"({said}): upload it later with `hf upload {name} {folder}`"
        ) from error
    return f"{api.endpoint}/{name}"
