"""Makes OctreeNCAPreprocessor known to nnU-Net. Written by `nnunet_octreenca register`.

Nothing is imported before our name is asked for, so that this file cannot break nnU-Net's own
preprocessor, whatever state the plugin is in.
"""


def __getattr__(name: str) -> type:
    if name == "OctreeNCAPreprocessor":
        from nnunet_octreenca.integration.lean_preprocessor import OctreeNCAPreprocessor

        return OctreeNCAPreprocessor
    raise AttributeError(name)
