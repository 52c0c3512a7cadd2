"use strict";
(async () => {
  const { cases, colours } = JSON.parse(document.getElementById("viewer-data").textContent);
  const element = (name) => document.getElementById(`viewer-${name}`);
  const place = element("place");
  let viewer;
  try {
    viewer = new niivue.Niivue({
      isColorbar: false, backColor: [0, 0, 0, 1], crosshairColor: [1, 1, 1, 0.5], crosshairWidth: 0.15,
      isRadiologicalConvention: true, sagittalNoseLeft: true, multiplanarShowRender: niivue.SHOW_RENDER.NEVER,
      isNearestInterpolation: true, loadingText: "", logLevel: "error", dragAndDropEnabled: false,
    });
    viewer.onLocationChange = (location) => {
      const { corner, step } = cases[element("case").selectedIndex];
      const voxel = corner.map((first, axis) => first + step * Math.round(location.vox[axis]));
      const outcome = location.values[1] && colours.labels[location.values[1].value];
      place.textContent = `Voxel x ${voxel[0]}, y ${voxel[1]}, z ${voxel[2]}: ${outcome || "background"}`;
    };
    await viewer.attachToCanvas(element("canvas"));
  } catch (error) {
    place.textContent = `This browser cannot show volumes (no WebGL 2): ${error.message}`;
    return;
  }
  viewer.setSliceType(viewer.sliceTypeMultiplanar);
  const load = (base64, name) => niivue.NVImage.loadFromBase64({ base64, name: `${name}.nii.gz`, colormap: "gray" });
  const show = async () => {
    const chosen = cases[element("case").selectedIndex];
    const image = await load(chosen.image, "image");
    const overlay = await load(chosen.overlays[element("method").value], "overlay");
    for (const volume of [...viewer.volumes]) viewer.removeVolume(volume);
    viewer.addVolume(image);
    viewer.addVolume(overlay);
    overlay.setColormapLabel(colours);
    fade();
    viewer.createOnLocationChange();
  };
  const fade = () => {
    if (viewer.volumes.length < 2) return;
    viewer.setOpacity(1, element("opacity").value / 100);
    viewer.updateGLVolume();
  };
  element("case").addEventListener("change", show);
  element("method").addEventListener("change", show);
  element("opacity").addEventListener("input", fade);
  const moves = {
    ArrowLeft: [-1, 0, 0], ArrowRight: [1, 0, 0], ArrowUp: [0, 1, 0], ArrowDown: [0, -1, 0],
    PageUp: [0, 0, 1], PageDown: [0, 0, -1],
  };
  element("canvas").addEventListener("keydown", (event) => {
    if (!moves[event.key]) return;
    event.preventDefault();
    event.stopImmediatePropagation();
    viewer.moveCrosshairInVox(...moves[event.key]);
  }, true);
  await show();
  document.body.dataset.viewer = "ready";
})();
