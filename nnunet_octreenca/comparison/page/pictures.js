"use strict";
(() => {
  const { cases } = JSON.parse(document.getElementById("viewer-data").textContent);
  const element = (name) => document.getElementById(`viewer-${name}`);
  const place = element("place");
  const viewer = OpenSeadragon({
    element: element("frame"), drawer: "canvas", showNavigationControl: false, imageSmoothingEnabled: false,
    maxZoomPixelRatio: 16, visibilityRatio: 0.5, animationTime: 0.3, preserveImageSizeOnResize: true,
    gestureSettingsMouse: { clickToZoom: false, dblClickToZoom: true },
  });
  const chosen = () => cases[element("case").selectedIndex];
  const opacity = () => element("opacity").value / 100;
  const add = (url, index, shown) =>
    new Promise((done, failed) => {
      viewer.addTiledImage({
        tileSource: { type: "image", url, buildPyramid: true, crossOriginPolicy: false },
        index, replace: index < viewer.world.getItemCount(), opacity: shown,
        success: done, error: (event) => failed(new Error(event.message)),
      });
    });
  const tell = (point) => {
    const image = viewer.world.getItemAt(0);
    if (!image) return;
    const { corner, step } = chosen();
    const at = image.viewportToImageCoordinates(point);
    place.textContent = `Pixel x ${corner[0] + step * Math.floor(at.x)}, y ${corner[1] + step * Math.floor(at.y)}`;
  };
  const show = async () => {
    delete document.body.dataset.viewer;
    await add(chosen().image, 0, 1);
    await add(chosen().overlays[element("method").value], 1, opacity());
    viewer.viewport.goHome(true);
    tell(viewer.viewport.getCenter(true));
    document.body.dataset.viewer = "ready";
  };
  const cover = async () => {
    delete document.body.dataset.viewer;
    await add(chosen().overlays[element("method").value], 1, opacity());
    document.body.dataset.viewer = "ready";
  };
  element("case").addEventListener("change", show);
  element("method").addEventListener("change", cover);
  element("opacity").addEventListener("input", () => viewer.world.getItemAt(1)?.setOpacity(opacity()));
  viewer.addHandler("update-viewport", () => tell(viewer.viewport.getCenter(true)));
  show();
})();
