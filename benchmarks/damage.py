"""How much of the damage to pictures is seen: `python -m benchmarks.damage`.

Eight kinds of JPEG of one scene, and a PNG, a lossy and a lossless WebP and a GIF of it; in each,
at places drawn by a seed behind its first quarter, some bytes are lost, doubled, zeroed or
overwritten.
"""

import io
from collections.abc import Callable

import click
import numpy as np
from PIL import Image

from ttc_core.pictures import open_picture

Damage = Callable[[bytes, int, int, np.random.Generator], bytes]
SIZES = (16, 64, 512, 2048)
DAMAGES: dict[str, Damage] = {
    "lost": lambda body, at, size, _: body[:at] + body[at + size :],
    "doubled": lambda body, at, size, _: body[: at + size] + body[at:],
    "zeroed": lambda body, at, size, _: body[:at] + bytes(size) + body[at + size :],
    "overwritten": lambda body, at, size, draw: body[:at] + draw.bytes(size) + body[at + size :],
}


def pictures() -> dict[str, list[bytes]]:
    """The files by format: a photograph's mixture of flat and rough places, 320 x 240."""
    draw = np.random.default_rng(0)
    coarse = draw.integers(0, 256, (12, 16, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((320, 240), Image.Resampling.BICUBIC))
    rough = draw.normal(0, 12, smooth.shape) * (np.arange(320) > 160)[None, :, None]
    scene = Image.fromarray((smooth + rough).clip(0, 255).astype(np.uint8))
    jpegs = [
        written(image, "JPEG", quality=quality, progressive=progressive)
        for image in (scene, scene.convert("L"))
        for quality in (75, 95)
        for progressive in (False, True)
    ]
    return {
        "JPEG": jpegs,
        "PNG": [written(scene, "PNG")],
        "WebP": [written(scene, "WEBP", quality=80)],
        "lossless WebP": [written(scene, "WEBP", lossless=True)],
        "GIF": [written(scene, "GIF")],
    }


def written(image: Image.Image, form: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


def is_seen(body: bytes) -> bool:
    try:
        open_picture(body, ("JPEG", "PNG", "WEBP", "GIF")).load()
    except Exception:  # whatever it is called, it is refused
        return True
    return False


@click.command()
@click.option("--trials", type=click.IntRange(1), default=20, show_default=True)
def main(trials: int) -> None:
    """Print the share of damages that is seen, in %, by format and bytes damaged."""
    for form, bodies in pictures().items():
        assert not any(map(is_seen, bodies))
        for name, damage in DAMAGES.items():
            shares = []
            for size in SIZES:
                draw = np.random.default_rng(size)
                seen = [
                    is_seen(damage(body, int(draw.integers(len(body) // 4, at_most)), size, draw))
                    for body in bodies
                    for at_most in [max(len(body) // 4 + 1, len(body) - size - 64)]
                    for _ in range(trials)
                ]
                shares.append(f"{size} bytes {100 * np.mean(seen):5.1f}")
            print(f"{form:13} {name:12} {', '.join(shares)}", flush=True)


if __name__ == "__main__":
    main()
