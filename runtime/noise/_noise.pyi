import numpy as np

class MT19937:
    def __init__(self, seed: int) -> None: ...  # 0 <= seed < 2**32
    def draw(self, out: np.ndarray) -> None: ...

def box_muller(words: np.ndarray) -> None: ...
