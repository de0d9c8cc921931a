"""What train_classifier.py optimises: the pair classifier with a head for the training alone; and its optimiser."""

from torch import nn

from jointdreamer.classifier.batches import Batch
from jointdreamer.classifier.losses import Answers, judge_ascent
from jointdreamer.classifier.model import PairClassifier
from jointdreamer.optim import ScheduledAdamW


class Learner(nn.Module):
    """The classifier, and where asked for a linear map from its class token to where the camera stood.

    Telling a wrong pose takes to know from where a view was taken, and the labels of pairs teach that to a backbone
    without pretraining very slowly. Where all objects share one front, as toys do, the direction can be said outright.
    The map is no part of the classifier, and is gone after the training.
    """

    def __init__(self, classifier: PairClassifier, tells_direction: bool, ascent_step: float):
        super().__init__()
        self.classifier, self.ascent_step = classifier, ascent_step
        self.direction = nn.Linear(classifier.settings.hidden_size, 3) if tells_direction else None

    def forward(self, batch: Batch) -> Answers:
        classifier = self.classifier
        features = classifier.encode(batch.rgb)
        logits = classifier.compare(features.take(batch.first), features.take(batch.second), batch.camera)
        direction = None if self.direction is None else self.direction(features.summary)
        ascent = None
        if batch.corrections is not None:
            seen = batch.corrections.seen
            reference = features if seen is None else classifier.encode(seen)
            ascent = judge_ascent(classifier, reference, batch.corrections, True, self.ascent_step)
        return Answers(logits, direction, ascent)


def build_optimizer(learner: Learner, weight_decay: float) -> ScheduledAdamW:
    """AdamW over what is trained; biases, norms and other vectors do not decay."""
    trained = [p for p in learner.parameters() if p.requires_grad]
    groups = [
        {"name": "matrices", "params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay},
        {"name": "vectors", "params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return ScheduledAdamW(groups, {}, betas=(0.9, 0.999))
