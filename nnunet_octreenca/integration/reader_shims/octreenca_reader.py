"""Makes OctreeNCANaturalImage2DIO known to nnU-Net. Written by `nnunet_octreenca register`.

Nothing is imported before our name is asked for, so that this file cannot break nnU-Net's own
readers, whatever state the plugin is in.
"""


def __getattr__(name: str) -> type:
    if name == "OctreeNCANaturalImage2DIO":
        from nnunet_octreenca.integration.lean_reader import OctreeNCANaturalImage2DIO

        return OctreeNCANaturalImage2DIO
    raise AttributeError(name)
