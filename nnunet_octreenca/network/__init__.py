"""The network: an automaton on every level of an octree."""

from nnunet_octreenca.network.octreenca import OctreeNCA

__all__ = ["OctreeNCA"]
