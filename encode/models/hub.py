"""Find a timm model's safetensors file in the Hugging Face cache, or download it from the hub."""

from __future__ import annotations

from pathlib import Path

_FILES = ["model.safetensors", "open_clip_model.safetensors"]


def find(timm_name: str) -> Path:
    """Return a model's file in the local Hugging Face cache; download it if it is not there.

    Raises:
        LookupError: If the file is in neither place; the message says why.
    """
    import huggingface_hub
    from huggingface_hub import constants

    cached_file = cached(timm_name)
    if cached_file is not None:
        return cached_file
    repo, wanted = _page(timm_name)
    if not repo:
        raise LookupError(f"timm knows no hub page for {timm_name}")
    if constants.HF_HUB_OFFLINE:
        raise LookupError(f"{repo} is not in the Hugging Face cache, and the hub is off")
    try:
        # Without a network this request fails at once, whereas a download retries.
        page = huggingface_hub.HfApi().model_info(repo, timeout=10)
        files = {file.rfilename for file in page.siblings or ()}
        for name in wanted:
            if name in files:
                return Path(huggingface_hub.hf_hub_download(repo, name))
    except Exception as error:  # noqa: BLE001  The hub raises its HTTP library's errors too.
        raise LookupError(f"{repo} could not be fetched ({type(error).__name__})") from None
    raise LookupError(f"{repo} has no safetensors file")


def cached(timm_name: str, page: str = "") -> Path | None:
    """Return a model's file in the local Hugging Face cache; None if it is not there.

    Args:
        page: Its repository on the hub if known; otherwise timm, which is slow to import, says.
    """
    import huggingface_hub

    repo, wanted = (page, _FILES) if page else _page(timm_name)
    for name in wanted if repo else ():
        file = huggingface_hub.try_to_load_from_cache(repo, name)
        if isinstance(file, str):
            return Path(file)
    return None


def _page(timm_name: str) -> tuple[str, list[str]]:
    """Return a model's hub repository and the possible names of its safetensors file there."""
    import timm

    config = timm.get_pretrained_cfg(timm_name, allow_unregistered=True)
    repo = (config.hf_hub_id or "") if config else ""
    if repo == "timm/":
        repo = f"timm/{timm_name}"
    stated = (config.hf_hub_filename or "") if config else ""
    names = [stated] if stated.endswith(".safetensors") else []
    return repo, [*names, *_FILES]
