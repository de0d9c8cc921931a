"""A score distillation of one's own: what is subtracted is the prediction without a text, instead of the drawn noise.

PYTHONPATH=examples/wordless python train.py --config-dir examples/wordless/conf distillation=wordless prompt="a bear"
"""

import torch

from jointdreamer.distillation.baselines import AskingBaseline


class Wordless(AskingBaseline):
    """B = e(x_t; 0). With the guided prediction as A, A - B = (1 + s) (e(x_t; y) - e(x_t; 0))."""

    @torch.no_grad()
    def forward(self, noised, cameras, now):
        (noise,) = self.prior.predict(noised.x_t, noised.t, [self.text.nothing(cameras)], cameras)
        return noise  # (B, V, C, h, w)
