"""Write tests/golden/brisque.npz: features and scores from the package brisque 0.2.0 for some pictures.

Use a separate environment, because the package fails with NumPy 2.4 and later:

    pip install "brisque[opencv-python-headless]==0.2.0" "numpy<2.3"
    python tests/write_brisque_golden.py
"""

from pathlib import Path

import numpy as np

GOLDEN_FILE = Path(__file__).parent / "golden" / "brisque.npz"


def pictures():
    """uint8 (4, 64, 64, 3): noise, smoothed noise, a grating in noise, and mostly dark noise."""
    random = np.random.default_rng(0)
    noise = random.random((4, 80, 64, 3))
    smooth = sum(np.roll(noise[1], shift, axis=axis) for axis in (0, 1) for shift in range(6)) / 12
    grating = 0.5 + 0.3 * np.sin(np.arange(64) / 3.0)[:, None] + 0.2 * (noise[2] - 0.5)
    drawn = np.stack([(noise[0] + noise[3]) / 2, smooth, grating, noise[3] ** 4])[:, :64]
    return np.round(255 * np.clip(drawn, 0.0, 1.0)).astype(np.uint8)


def main():
    """Compute the values with the package, and write the file."""
    import cv2
    import skimage.color
    from brisque import BRISQUE

    reference = BRISQUE(url=False)
    features, scores = [], []
    for picture in pictures():
        gray = skimage.color.rgb2gray(picture)
        half = cv2.resize(gray, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_CUBIC)
        found = [reference.calculate_brisque_features(each) for each in (gray, half)]
        features.append([float(np.squeeze(each)) for each in np.concatenate(found)])
        scores.append(reference.score(picture))
    np.savez(GOLDEN_FILE, features=np.asarray(features), scores=np.asarray(scores))


if __name__ == "__main__":
    main()
