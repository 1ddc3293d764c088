"""The family of faults that end a training, each with a sentence about what the user can put right."""


class TrainingFailed(Exception):
    """Nothing can be learned from these films with this recipe; the text says why."""
