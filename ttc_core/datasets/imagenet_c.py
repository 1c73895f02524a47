"""The layout of ImageNet-C: DIR/<corruption>/<severity>/<WordNet id>/*.JPEG."""

from pathlib import Path

import numpy as np

from ttc_core.datasets.files import ImageFiles, as_sent, folders, image_files
from ttc_core.datasets.stream import DataError, DataSet, Shift
from ttc_core.geometry import Geometry
from ttc_core.zoo import fashion_mnist

WORDNET_IDS_FILE = Path(fashion_mnist.__file__).parent / "imagenet_wordnet_ids.txt"


class ImageNetC(DataSet):
    """A class is the rank of its WordNet id among ImageNet's thousand, whatever folders are there.

    Files are listed when a corruption is opened and decoded as they are read.
    """

    def __init__(self, directory: Path, geometry: Geometry) -> None:
        self._directory, self._geometry = directory, geometry
        ids = WORDNET_IDS_FILE.read_text().split()
        self._classes = {wordnet_id: rank for rank, wordnet_id in enumerate(ids)}

    def shift(self, corruption: str, severity: int, seed: int) -> Shift:
        directory = self._directory / corruption / str(severity)
        if not directory.is_dir():
            raise DataError(
                f"{directory} is missing; expected are {directory}/<WordNet id>/*.JPEG."
            )
        names = folders(directory)
        for name in names:
            if name not in self._classes:
                raise DataError(f"{directory / name} is none of ImageNet's 1,000 WordNet ids.")
        files = image_files(directory, names)
        if not files:
            raise DataError(
                f"{directory} holds no images; expected are {directory}/<WordNet id>/*.JPEG."
            )

        def path(place: int) -> Path:
            folder, file = files[place]
            return directory / folder / file

        labels = np.array([self._classes[folder] for folder, _ in files], np.int64)
        return as_sent(ImageFiles(path, self._geometry), labels, severity)
