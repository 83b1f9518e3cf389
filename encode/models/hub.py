"""Where the Hugging Face cache and hub have a timm model's safetensors file."""

from __future__ import annotations

from pathlib import Path


def find(timm_name: str) -> Path:
    """A model's file in the local Hugging Face cache, fetched if need be.

    Raises:
        LookupError: It is nowhere to be had; says why.
    """
    import huggingface_hub
    from huggingface_hub import constants

    there = cached(timm_name)
    if there is not None:
        return there
    repo, wanted = _page(timm_name)
    if not repo:
        raise LookupError(f"timm knows no hub page for {timm_name}")
    if constants.HF_HUB_OFFLINE:
        raise LookupError(f"{repo} is not in the Hugging Face cache, and the hub is off")
    try:
        # Asked first because it answers at once where there is no network; a download retries.
        page = huggingface_hub.HfApi().model_info(repo, timeout=10)
        files = {file.rfilename for file in page.siblings or ()}
        for name in wanted:
            if name in files:
                return Path(huggingface_hub.hf_hub_download(repo, name))
    except Exception as error:  # noqa: BLE001  The hub raises its HTTP library's errors too.
        raise LookupError(f"{repo} could not be fetched ({type(error).__name__})") from None
    raise LookupError(f"{repo} has no safetensors file")


def cached(timm_name: str) -> Path | None:
    """A model's file in the local Hugging Face cache."""
    import huggingface_hub

    repo, wanted = _page(timm_name)
    for name in wanted if repo else ():
        there = huggingface_hub.try_to_load_from_cache(repo, name)
        if isinstance(there, str):
            return Path(there)
    return None


def _page(timm_name: str) -> tuple[str, list[str]]:
    """A model's repository on the hub, and the names its safetensors file may have there."""
    import timm

    config = timm.get_pretrained_cfg(timm_name, allow_unregistered=True)
    repo = (config.hf_hub_id or "") if config else ""
    if repo == "timm/":
        repo = f"timm/{timm_name}"
    stated = (config.hf_hub_filename or "") if config else ""
    names = [stated] if stated.endswith(".safetensors") else []
    return repo, [*names, "model.safetensors", "open_clip_model.safetensors"]
