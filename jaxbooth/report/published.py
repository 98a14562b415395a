"""Names of measures, and the published user study to read one's own beside: Ruiz et al. 2023 (arXiv 2208.12242)."""

# Table 2: percent of 1,800 answers by 72 people, majority of three for each question.
STUDY = {
    "methods": ("DreamBooth (SD)", "Textual Inversion (SD)"),
    "subject": (68, 22, 10),
    "prompt": (81, 12, 7),
}

METRICS: dict[str, tuple[str, str]] = {  # key -> name within a line, which direction is better
    "dino": ("DINO", "higher"),
    "clip_i": ("CLIP-I", "higher"),
    "clip_t": ("CLIP-T", "higher"),
    "clip_t_with_identifier": ("CLIP-T with identifier", "higher"),
    "pres": ("PRES", "lower"),
    "div": ("DIV", "higher"),
    "subject_fidelity": ("subject fidelity", "higher"),
    "prompt_fidelity": ("prompt fidelity", "higher"),
    "class_subject_similarity": ("class like the subject", "lower"),
    "class_drift": ("class drift", "lower"),
    "diversity": ("diversity", "higher"),
    "class_diversity": ("class diversity", "higher"),
}


def metric_key(name: str) -> str:
    """One spelling of a metric's name: "CLIP-I" and "clip i" are clip_i."""
    return name.strip().lower().replace("-", "_").replace(" ", "_")
