"""Pictures: data in, a plotly Figure (or circuitsvis attention) out. Nothing is measured or fitted here.

plotly and circuitsvis are imported when a picture is drawn, so importing this package costs neither.

>>> from mi_ablate.figures import spectrum
>>> figure = spectrum([1, 2, 3], [0.1, 0.8, 0.1], chosen=[2])
>>> [(bar.name, bar.x, bar.y) for bar in figure.data]
[('chosen', (2,), (0.8,)), ('other frequencies', (1, 3), (0.1, 0.1))]
"""

from mi_ablate.figures.bars import spectrum
from mi_ablate.figures.beside import panels
from mi_ablate.figures.circles import answer_circle
from mi_ablate.figures.coloured import TokenPicture, tokens
from mi_ablate.figures.curves import removal
from mi_ablate.figures.heads import AttentionPicture, attention
from mi_ablate.figures.helices import helix
from mi_ablate.figures.layers import by_site
from mi_ablate.figures.maps import heat
from mi_ablate.figures.outcomes import outcome
from mi_ablate.figures.progress import training_progress
from mi_ablate.figures.series import lines
from mi_ablate.figures.sizes import directions
from mi_ablate.figures.tables import html_table
from mi_ablate.figures.training import training_curves

__all__ = [
    "AttentionPicture",
    "TokenPicture",
    "answer_circle",
    "attention",
    "by_site",
    "directions",
    "heat",
    "helix",
    "html_table",
    "lines",
    "outcome",
    "panels",
    "removal",
    "spectrum",
    "tokens",
    "training_curves",
    "training_progress",
]
