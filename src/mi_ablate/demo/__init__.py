"""The main job: take a trained modular-arithmetic transformer apart, live, with a control beside every effect.

1. Accuracy. 2. Key frequencies, by energy of W_E. 3. Removal: how many directions of the answer's class means can go
before the model fails. 4. The answer circle: a fit to two thirds of the answers writes answers that it has never seen.
5. Attention of every head.

Multiplication is analysed in exponents of a primitive root (`mi_ablate.modular.discrete_log`), without the zero operand;
"+5" then means five steps of the exponent. What the page may claim: a circle that can be written says what the model
*writes*, not which algorithm wrote it; models with constant attention ("Pizza", Zhong et al. 2023) have one too.
"""

from mi_ablate.demo.results import Demo, take_apart

__all__ = ["Demo", "take_apart"]
