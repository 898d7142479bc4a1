"""A behaviour of a language model as two sets of prompts: found, chosen, removed, measured on prompts held back.

1. The answers: tokens that the model gives more often after prompts of one kind (found on the first part of the prompts, or
given). Their log-odds are the behaviour. 2. Candidate directions: differences of means at every layer (Arditi et al. 2024,
arXiv 2406.11717). 3. The choice, on the second part. 4. The effect on the third part, beside directions drawn from the
covariance and the top principal component, removed at the same places; what happens to the other prompts; the curve against
the number of directions.

It measures how fragile a learned behaviour is against linear removal. It misleads where the two sets differ in something
else too (length, topic): that is removed as well. A behaviour that survives resists this protocol, not every one.
"""

from mi_ablate.abliteration.answers import Answers, find_answers, given_answers
from mi_ablate.abliteration.pipeline import abliterate, tuned
from mi_ablate.abliteration.results import Abliteration

__all__ = ["Abliteration", "Answers", "abliterate", "find_answers", "given_answers", "tuned"]
