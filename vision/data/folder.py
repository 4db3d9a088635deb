"""Images in folders, one for each class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Unpack

from PIL.Image import Image

from attention_core.training import UsageError
from attention_core.training.inputs import class_folders, files
from vision.data.image_dataset import ImageData, ImageDataOptions
from vision.data.image_io import IMAGES, open_image


class ImageFolder(ImageData):
    """The images below a folder that has a folder for each class.

    Either of two layouts: `root/train/CLASS/...`, besides it `root/val` and `root/test` in the
    same form; or `root/CLASS/...`. Of what is not there, 20% of the training images become the
    test and 20% of the rest validation, stratified, by a hash of their names: an image stays in
    its part when others come. Files that do not end as images do are left out, and so is what is
    hidden.

    Args:
        root: the folder.
        settings: those of `ImageData`; `classes` names the folders to read, in the order of the
            labels; by default all of them, sorted.

    Raises:
        UsageError: when it loads: there is no such folder, it has no folders of classes, a class
            has no image, or a class is only in validation or test.
    """

    def __init__(self, root: str, **settings: Unpack[ImageDataOptions]) -> None:
        super().__init__(**settings)
        self.root = Path(root).expanduser()

    def describe(self) -> dict[str, Any]:
        self.classes = self.classes or class_folders(self.root)
        return super().describe()

    def load(self) -> None:
        found = class_folders(self.root)
        self.classes = self.classes or found
        parts = self.root if not (self.root / "train").is_dir() else self.root / "train"
        train = _Files(parts, self.classes, self.root, self.largest_input)
        others = [
            _Files(self.root / part, self.classes, self.root, self.largest_input)
            if parts != self.root and (self.root / part).is_dir()
            else None
            for part in ("val", "test")
        ]
        self.fill(train, *others, name="image folder")


class _Files:
    """The images of a folder, by class and name.

    Args:
        folder: has a folder for each class. A part other than training may lack some.
        classes: their names.
        root: of the data set, below which images are named.
        largest: how many pixels an image may have.
    """

    def __init__(self, folder: Path, classes: Sequence[str], root: Path, largest: int) -> None:
        self.root, self.largest = root, largest
        self.paths: list[Path] = []
        self.targets: list[int] = []
        have = class_folders(folder)
        unknown = [name for name in have if name not in classes]
        if unknown and folder not in (root, root / "train"):
            raise UsageError(
                f"data.root: {str(folder)!r} has a class {unknown[0]!r}, which training does not "
                f"have; its classes are {', '.join(classes)}."
            )
        for label, name in enumerate(classes):
            if name not in have:
                if folder in (root, root / "train"):
                    raise UsageError(
                        f"data.classes: there is no folder {name!r} in {str(folder)!r}; there are "
                        f"{', '.join(have)}."
                    )
                continue
            try:
                paths = [path for _, path in files(folder / name, IMAGES)]
            except UsageError as error:
                raise UsageError(
                    f"data.root: the class {name!r} has no image: {str(folder / name)!r} holds no "
                    f"file that ends in one of {', '.join(IMAGES)}."
                ) from error
            self.paths += paths
            self.targets += [label] * len(paths)

    def open(self, index: int) -> Image:
        return open_image(self.paths[index], self.largest)

    def name(self, index: int) -> str:
        return self.paths[index].relative_to(self.root).as_posix()
