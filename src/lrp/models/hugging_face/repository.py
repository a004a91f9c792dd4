"""Models of transformers: "hf:NAME" of the Hugging Face hub, "hf:./folder" as `save_pretrained` writes it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lrp.classes import imagenet_names
from lrp.errors import DETECTOR, ModelError, error_reason
from lrp.models.downloads import Progress, download_repository, to_stderr
from lrp.models.logits import Logits
from lrp.models.preprocessing import Preprocessing

PREFIX = "hf:"


class Repository:
    """A folder with a model of transformers, and its configuration.

    Raises:
        ModelError: transformers is not installed, there is no such folder or it cannot be fetched, or its model is unknown.
    """

    def __init__(self, name: str, progress: Progress = to_stderr, weights: bool = True) -> None:
        """weights: whether they are needed, and downloaded."""
        self.name = name
        self.transformers: Any = _transformers(name)
        self.folder = _folder(name, progress, weights)
        try:
            with quiet(self.transformers):
                self.config: Any = self.transformers.AutoConfig.from_pretrained(
                    self.folder, local_files_only=True, trust_remote_code=False
                )
        except Exception as error:  # an unknown type, or a type whose code lies beside the weights
            raise ModelError(
                f"{name} is no model that transformers {self.transformers.__version__} knows ({error_reason(error)}): code of the "
                "repository is never run; a function of yours can load it: --model MODULE:FUNCTION."
            ) from error
        self.architecture: str = next(iter(self.config.architectures or ()), "")

    @property
    def is_image_text(self) -> bool:
        """Whether the model compares images with texts, as CLIP does."""
        kind = getattr(self.transformers, self.architecture, None)
        return hasattr(kind, "get_image_features") and hasattr(kind, "get_text_features")

    @property
    def class_names(self) -> tuple[str, ...]:
        names = [str(self.config.id2label[index]) for index in range(self.config.num_labels)]
        if names == [f"LABEL_{index}" for index in range(len(names))]:
            return tuple(f"class {index}" for index in range(len(names)))
        return imagenet_names() if _are_of_imagenet(names) else tuple(names)

    def classifier(self, classes: int | None = None) -> nn.Module:
        """The model with its weights; or, for a number of classes, with random ones."""
        kind = self._class_of_classifier()
        with quiet(self.transformers):
            if classes is not None:
                self.config.num_labels = classes
                return Logits(kind(self.config), self._key)
            model, missing = self._filled(kind)
        if missing:
            raise ModelError(
                f"{self.name} has no weights for {', '.join(missing)}: it was not trained to classify; "
                "`lrp retrain` can, from a model that has these."
            )
        return Logits(model, self._key).eval()

    @property
    def _key(self) -> str:
        """Under which name the model returns its logits."""
        return "last_hidden_state" if self.config.model_type == "pp_lcnet" else "logits"

    def _class_of_classifier(self) -> Any:
        from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES

        known = MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES.get(self.config.model_type, ())
        known = (known,) if isinstance(known, str) else known
        if self.architecture in known:
            return getattr(self.transformers, self.architecture)
        if "Detection" in self.architecture:
            raise ModelError(f"{self.name} {DETECTOR}")
        raise ModelError(
            f"{self.name} is {self.architecture or 'of no architecture that it names'}: expected an image classifier "
            f"({', '.join(known) or 'a ...ForImageClassification'}), or a model of images and texts such as CLIPModel."
        )

    def _filled(self, kind: Any) -> tuple[nn.Module, list[str]]:
        """The model with its weights, in float32, and the names of those that are missing."""
        try:
            model, found = kind.from_pretrained(
                self.folder, local_files_only=True, dtype=torch.float32, output_loading_info=True
            )
        except Exception as error:  # what a damaged or missing file raises depends on the file
            raise ModelError(
                f"{self.name}: its weights in {self.folder} cannot be loaded: {error_reason(error)}."
            ) from error
        return model.eval(), sorted(found["missing_keys"])

    def image_text_model(self) -> nn.Module:
        with quiet(self.transformers):
            model, missing = self._filled(getattr(self.transformers, self.architecture))
        if missing:
            raise ModelError(f"{self.name} has no weights for {', '.join(missing)}.")
        return model

    def preprocessing(self, progress: Progress) -> Preprocessing:
        """What its processor does; says which part of a photo is seen where the processor itself is called."""
        from lrp.models.geometries import ProcessorGeometry
        from lrp.models.hugging_face.processors import preprocessing_of_processor

        try:
            with quiet(self.transformers):
                processor = self.transformers.AutoImageProcessor.from_pretrained(
                    self.folder, local_files_only=True, trust_remote_code=False
                )
        except Exception as error:  # OSError or ValueError, by what the folder lacks
            raise ModelError(
                f"{self.name} has no image processor, a file preprocessor_config.json: give a preprocessing (--preprocess FILE)."
            ) from error
        with quiet(self.transformers):
            found = preprocessing_of_processor(processor, self.name)
        if isinstance(found.geometry, ProcessorGeometry):
            left, top, right, bottom = (round(edge) for edge in found.geometry.box(480, 640))
            progress(
                f"{self.name}: photos are prepared by its own {type(processor).__name__}; of one of 640 x 480 pixels the model sees "
                f"the part from ({left}, {top}) to ({right}, {bottom})."
            )
        return found


@contextmanager
def quiet(transformers: Any) -> Iterator[None]:
    """Neither progress bars of transformers nor its advice."""
    logging = transformers.utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _transformers(name: str) -> Any:
    try:
        import transformers
    except ModuleNotFoundError as error:
        raise ModelError(f"{name} is a model of transformers: pip install 'lrp[hf]'.") from error
    return transformers


def _folder(name: str, progress: Progress, weights: bool) -> Path:
    given = name.removeprefix(PREFIX)
    folder = Path(given).expanduser()
    if not folder.is_dir():
        if given.startswith((".", "/", "~")) or os.path.isabs(given) or not given:
            raise ModelError(f"{name}: there is no folder {folder}.")
        return download_repository(name, given, weights, progress)
    if not (folder / "config.json").is_file():
        raise ModelError(
            f"{name}: {folder} has no config.json: expected a folder as save_pretrained writes it."
        )
    return folder


def _are_of_imagenet(names: Sequence[str]) -> bool:
    """Whether they are the 1000 names of ImageNet-1k, in any of their spellings: "tabby", "tabby, tabby cat"."""
    if len(names) != 1000:
        return False
    from timm.data import ImageNetInfo

    known = ImageNetInfo("imagenet-1k").label_descriptions()
    alike = sum(
        a.split(",")[0].casefold() == b.split(",")[0].casefold() for a, b in zip(names, known, strict=True)
    )
    return alike >= 950
