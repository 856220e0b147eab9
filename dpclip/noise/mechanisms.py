"""Noise mechanisms by name. A new one is one file and one line here."""

from dpclip.noise.mechanism import MECHANISMS as MECHANISMS
from dpclip.noise.mechanism import NoiseMechanism as NoiseMechanism
from dpclip.noise.release import WhiteGaussian as WhiteGaussian
