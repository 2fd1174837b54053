"""What the paper reports: tables I–IV and VI, to stand beside one's own numbers.

H. Li, M. Yuan, J. Li, Y. Liu, G. Lu, Y. Xu, Z. Yu, D. Zhang, "Focus Affinity Perception and Super-Resolution
Embedding for Multifocus Image Fusion", IEEE Trans. Neural Netw. Learn. Syst., 2024,
doi 10.1109/TNNLS.2024.3367782. All values as printed, in the order of its columns.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

__all__ = [
    "CITATION",
    "COLUMNS",
    "LYTRO_PAIRS",
    "TABLE_I",
    "TABLE_II",
    "TABLE_III",
    "TABLE_IV",
    "TABLE_VI",
    "PaperRow",
    "paper_rows",
]

CITATION = "Li et al., IEEE TNNLS 2024, doi 10.1109/TNNLS.2024.3367782"
COLUMNS = ("Q_NICE", "Q_G", "Q_P", "Q_S", "Q_Y", "Q_MI")
LYTRO_PAIRS = 20  # the colour pairs of Lytro that tables I, IV and VI are means over


class PaperRow(NamedTuple):
    """One method of one table."""

    method: str
    values: tuple[float, float, float, float, float, float]  # in the order of COLUMNS

    @property
    def by_key(self) -> dict[str, float]:
        """The values by the metrics' keys."""
        return dict(zip(COLUMNS, self.values, strict=True))


# Two-step methods against the paper's, mean over the pairs of Lytro, by scale.
TABLE_I: Mapping[int, tuple[PaperRow, ...]] = {
    2: (
        PaperRow("RDSR-DRPL", (0.8209, 0.4039, 0.4608, 0.8776, 0.7478, 0.7417)),
        PaperRow("RDSR-GACN", (0.8210, 0.4128, 0.4796, 0.8861, 0.7645, 0.7442)),
        PaperRow("RDSR-SESF", (0.8210, 0.4121, 0.4794, 0.8853, 0.7641, 0.7436)),
        PaperRow("CDC-DRPL", (0.8203, 0.3546, 0.4002, 0.8414, 0.6990, 0.7271)),
        PaperRow("CDC-GACN", (0.8203, 0.3615, 0.4277, 0.8510, 0.7138, 0.7286)),
        PaperRow("CDC-SESF", (0.8203, 0.3614, 0.4263, 0.8508, 0.7140, 0.7282)),
        PaperRow("RDSR-MFFGAN", (0.8196, 0.3998, 0.4448, 0.8354, 0.6828, 0.7194)),
        PaperRow("CDC-MFFGAN", (0.8190, 0.3529, 0.3802, 0.8054, 0.7899, 0.6941)),
        PaperRow("DFUNet-MFFGAN", (0.8154, 0.2274, 0.1392, 0.6839, 0.4760, 0.5749)),
        PaperRow("Ours", (0.8226, 0.4757, 0.5605, 0.8998, 0.8451, 0.7849)),
    ),
    3: (
        PaperRow("RDSR-DRPL", (0.8172, 0.2462, 0.1961, 0.7373, 0.5124, 0.6355)),
        PaperRow("RDSR-GACN", (0.8172, 0.2476, 0.2029, 0.7433, 0.5151, 0.6348)),
        PaperRow("RDSR-SESF", (0.8171, 0.2482, 0.2026, 0.7438, 0.5168, 0.6340)),
        PaperRow("CDC-DRPL", (0.8162, 0.2205, 0.1367, 0.6939, 0.5131, 0.6053)),
        PaperRow("CDC-GACN", (0.8159, 0.2185, 0.1476, 0.6985, 0.5140, 0.5959)),
        PaperRow("CDC-SESF", (0.8158, 0.2209, 0.1454, 0.6985, 0.5179, 0.5928)),
        PaperRow("RDSR-MFFGAN", (0.8160, 0.2410, 0.1862, 0.6969, 0.5212, 0.5993)),
        PaperRow("CDC-MFFGAN", (0.8164, 0.2397, 0.1485, 0.6741, 0.6361, 0.6124)),
        # As printed; the columns are evidently shifted by one (Q_MI stands first).
        PaperRow("DFUNet-MFFGAN (sic)", (0.4909, 0.8133, 0.1837, 0.0593, 0.5428, 0.3360)),
        PaperRow("Ours", (0.8211, 0.3285, 0.2952, 0.8222, 0.6808, 0.7454)),
    ),
    4: (
        PaperRow("RDSR-DRPL", (0.8155, 0.2117, 0.1174, 0.6600, 0.4293, 0.5769)),
        PaperRow("RDSR-GACN", (0.8154, 0.2117, 0.1181, 0.6622, 0.4272, 0.5720)),
        PaperRow("RDSR-SESF", (0.8153, 0.2116, 0.1182, 0.6619, 0.4272, 0.5709)),
        PaperRow("CDC-DRPL", (0.8134, 0.2039, 0.0826, 0.6094, 0.4103, 0.4972)),
        PaperRow("CDC-GACN", (0.8132, 0.2036, 0.0858, 0.6091, 0.4101, 0.4897)),
        PaperRow("CDC-SESF", (0.8131, 0.2035, 0.0843, 0.6077, 0.4085, 0.4871)),
        PaperRow("RDSR-MFFGAN", (0.8185, 0.2671, 0.1796, 0.7124, 0.5852, 0.4999)),
        PaperRow("CDC-MFFGAN", (0.8112, 0.1748, 0.0340, 0.4100, 0.4428, 0.3973)),
        PaperRow("DFUNet-MFFGAN", (0.8120, 0.1602, 0.0320, 0.4495, 0.2402, 0.4315)),
        PaperRow("Ours", (0.8193, 0.2718, 0.1947, 0.7627, 0.5952, 0.6935)),
    ),
}

# The parts of the network, scale 2, two pairs of Lytro.
TABLE_II: Mapping[str, tuple[PaperRow, ...]] = {
    "lytro-03": (
        PaperRow("Baseline", (0.8207, 0.4833, 0.5481, 0.8929, 0.8361, 0.7514)),
        PaperRow("Baseline+FAPN", (0.8205, 0.4915, 0.5592, 0.8930, 0.8536, 0.7478)),
        PaperRow("Baseline+FAPN+SDFC", (0.8209, 0.4946, 0.5715, 0.8968, 0.8554, 0.7576)),
        PaperRow("Baseline+FAPN+SDFC+GEB", (0.8213, 0.5154, 0.6068, 0.9028, 0.8828, 0.7672)),
    ),
    "lytro-05": (
        PaperRow("Baseline", (0.8243, 0.4251, 0.5700, 0.8819, 0.7994, 0.8113)),
        PaperRow("Baseline+FAPN", (0.8243, 0.4185, 0.5795, 0.8819, 0.8029, 0.8084)),
        PaperRow("Baseline+FAPN+SDFC", (0.8249, 0.4254, 0.5827, 0.8857, 0.8085, 0.8206)),
        PaperRow("Baseline+FAPN+SDFC+GEB", (0.8245, 0.4510, 0.6025, 0.8866, 0.8402, 0.8121)),
    ),
}

# Two steps against one, scale 2, two pairs of Lytro.
TABLE_III: Mapping[str, tuple[PaperRow, ...]] = {
    "lytro-03": (
        PaperRow("SR-Fusion", (0.8204, 0.4885, 0.5620, 0.8931, 0.8461, 0.7455)),
        PaperRow("Fusion-SR", (0.8205, 0.4780, 0.5591, 0.8914, 0.8393, 0.7474)),
        PaperRow("Ours", (0.8213, 0.5154, 0.6068, 0.9028, 0.8828, 0.7672)),
    ),
    "lytro-05": (
        PaperRow("SR-Fusion", (0.8231, 0.4197, 0.5620, 0.8732, 0.7934, 0.7793)),
        PaperRow("Fusion-SR", (0.8232, 0.4065, 0.5578, 0.8728, 0.7825, 0.7829)),
        PaperRow("Ours", (0.8245, 0.4510, 0.6025, 0.8866, 0.8402, 0.8121)),
    ),
}

# FAPN's attention, scale 2, mean over the pairs of Lytro.
TABLE_IV: tuple[PaperRow, ...] = (
    PaperRow("w/o SAM+CAM", (0.8220, 0.4652, 0.5301, 0.8952, 0.8310, 0.7691)),
    PaperRow("w/o SAM", (0.8229, 0.4667, 0.5420, 0.8939, 0.8371, 0.7894)),
    PaperRow("w/o CAM", (0.8224, 0.4700, 0.5409, 0.8977, 0.8367, 0.7788)),
    PaperRow("CAM+SAM", (0.8224, 0.4728, 0.5424, 0.8981, 0.8379, 0.7797)),
    PaperRow("SAM+CAM", (0.8226, 0.4757, 0.5605, 0.8998, 0.8451, 0.7849)),
)

# Fusion alone (scale 1), mean over the pairs of Lytro; none of these is the paper's own method.
TABLE_VI: tuple[PaperRow, ...] = (
    PaperRow("U2Fusion", (0.8217, 0.5285, 0.6964, 0.8775, 0.8557, 0.7775)),
    PaperRow("DRPL", (0.8343, 0.6896, 0.8170, 0.9400, 0.9713, 0.9678)),
    PaperRow("GACN", (0.8367, 0.6981, 0.8221, 0.9404, 0.9753, 1.0561)),
    PaperRow("SESF", (0.8362, 0.6967, 0.8216, 0.9394, 0.9755, 1.0519)),
)


def paper_rows(scale: int) -> tuple[str, tuple[PaperRow, ...]]:
    """Return the name and the rows of the table that holds the paper's means at `scale`; no rows if none."""
    return ("Table VI", TABLE_VI) if scale == 1 else ("Table I", TABLE_I.get(scale, ()))
