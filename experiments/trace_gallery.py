"""Trace the pictures of the Toybox world that its objects are recognized by, after a change to that world.

    python experiments/trace_gallery.py

This takes about two minutes on two CPU cores, and rewrites the file in the package.
"""

from ge3d_jax.cli import script


def main() -> None:
    """Trace the views of every kind, and write them."""
    from ge3d_jax.metrics.recognition import GALLERY_FILE, save_gallery

    save_gallery(GALLERY_FILE, print)
    print(f"The gallery is in {GALLERY_FILE}")


if __name__ == "__main__":
    script.run(main)
