"""Papers that several experiments are about."""

HINTON = (
    'Hinton, Srivastava, Krizhevsky, Sutskever, Salakhutdinov, "Improving neural networks by preventing co-adaptation of feature '
    'detectors", 2012, https://arxiv.org/abs/1207.0580'
)
IOFFE = (
    'Ioffe, "Batch renormalization: towards reducing minibatch dependence in batch-normalized models", NIPS 2017, '
    "https://arxiv.org/abs/1702.03275"
)
IOFFE_SZEGEDY = (
    'Ioffe, Szegedy, "Batch normalization: accelerating deep network training by reducing internal covariate shift", ICML 2015, '
    "https://arxiv.org/abs/1502.03167"
)
LI = (
    'Li, Chen, Hu, Yang, "Understanding the disharmony between dropout and batch normalization by variance shift", CVPR 2019, '
    "https://arxiv.org/abs/1801.05134"
)
SANTURKAR = (
    'Santurkar, Tsipras, Ilyas, Madry, "How does batch normalization help optimization?", NeurIPS 2018, '
    "https://arxiv.org/abs/1805.11604"
)
SRIVASTAVA = (
    'Srivastava, Hinton, Krizhevsky, Sutskever, Salakhutdinov, "Dropout: a simple way to prevent neural networks from '
    'overfitting", JMLR 2014, https://jmlr.org/papers/v15/srivastava14a.html'
)


def part_of(source: str, part: str) -> str:
    """Returns a source with the part that is meant.

    >>> part_of('A, "B", C 2000, https://d', "section 3")
    'A, "B", C 2000, section 3, https://d'
    """
    return source.replace(", https://", f", {part}, https://")
