"""Makes classes of OctreeNCA's known to nnU-Net. Written by `nnunet_octreenca register`.

The same file lies wherever nnU-Net looks for a class by its name. Nothing is imported before one
of our names is asked for, so that it cannot break nnU-Net's own classes, whatever state the
plugin is in.
"""

MODULES = {
    "OctreeNCAPlanner": "planner",
    "OctreeNCAPreprocessor": "preprocessor",
    "OctreeNCANaturalImage2DIO": "image_reader",
}


def __getattr__(name: str) -> type:
    if name in MODULES:
        from importlib import import_module

        found: type = getattr(import_module(f"nnunet_octreenca.integration.{MODULES[name]}"), name)
        return found
    raise AttributeError(name)
