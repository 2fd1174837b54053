"""The paper's network; it knows tensors, nothing of files, tiles or devices."""

from mffsr.model.fapn import FAPN, FapnConfig, FocusMaps
from mffsr.model.joint import FN, JointModel
from mffsr.model.resize import enlarge
from mffsr.model.srn import SRN, SrnConfig

__all__ = ["FAPN", "FN", "SRN", "FapnConfig", "FocusMaps", "JointModel", "SrnConfig", "enlarge"]
