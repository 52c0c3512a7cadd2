"""Makes OctreeNCAPlanner known to nnU-Net. Written by `nnunet_octreenca register`.

Nothing is imported before our name is asked for, so that this file cannot break nnU-Net's own
planners, whatever state the plugin is in.
"""


def __getattr__(name: str) -> type:
    if name == "OctreeNCAPlanner":
        from nnunet_octreenca.integration.planner import OctreeNCAPlanner

        return OctreeNCAPlanner
    raise AttributeError(name)
