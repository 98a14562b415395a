"""The DreamBooth paper's figures, to be read beside one's own, and the gate that they pass through (calibration)."""

from collections.abc import Mapping

REAL = "Real images"
ROWS: dict[str, dict[str, float]] = {
    # Ruiz et al. 2023 (arXiv 2208.12242), Table 1: 30 subjects, 25 prompts, 4 pictures each.
    REAL: {"dino": 0.774, "clip_i": 0.885},
    "DreamBooth (Imagen)": {"dino": 0.696, "clip_i": 0.812, "clip_t": 0.306},
    "DreamBooth (SD)": {"dino": 0.668, "clip_i": 0.803, "clip_t": 0.305},
    "Textual Inversion (SD)": {"dino": 0.569, "clip_i": 0.780, "clip_t": 0.255},
    # Table 3: Imagen, 15 subjects.
    "DreamBooth (Imagen), with prior, 15 subjects": {
        "pres": 0.493, "div": 0.391, "dino": 0.684, "clip_i": 0.815, "clip_t": 0.308,
    },
    "DreamBooth (Imagen), without prior, 15 subjects": {
        "pres": 0.664, "div": 0.371, "dino": 0.712, "clip_i": 0.828, "clip_t": 0.306,
    },
}  # fmt: skip
TOLERANCE = 0.01


def calibration(
    real: Mapping[str, float], with_self_pairs: Mapping[str, float], is_whole_set: bool
) -> tuple[list[str], bool]:
    """The row of the real photos, beside the published one where it can be compared.

    Args:
        real: Mean similarity of the photos, by metric.
        with_self_pairs: The same with each photo compared with itself too.
        is_whole_set: Whether the photos are all 158 of the DreamBooth benchmark.

    Returns:
        Lines to print, and whether the encoders may be trusted: nothing that is compared is off by more than 0.01.
    """
    row = ", ".join(f"{name} {value:.3f} (with self pairs {with_self_pairs[name]:.3f})" for name, value in real.items())
    lines = [f"real photos: {row}"]
    published = {name: ROWS[REAL][name] for name in real if name in ROWS[REAL]}
    if not published:
        return lines, True
    stated = ", ".join(f"{name} {value:.3f}" for name, value in published.items())
    if not is_whole_set:
        return [*lines, f"  not compared with the published {stated}: those are of the 158 photos of DreamBooth"], True
    off = {name: real[name] - value for name, value in published.items() if abs(real[name] - value) > TOLERANCE}
    lines.append(f"  published: {stated}")
    if off:
        lines.append(
            "WARNING: these encoders do not measure what the paper measured: "
            + ", ".join(f"{name} is off by {value:+.3f}" for name, value in off.items())
            + f" (allowed {TOLERANCE}). Check --dino (ViT-S/16, the first DINO) and --clip (ViT-B/32); until then, do "
            "not put these scores beside published ones."
        )
    return lines, not off
