"use strict";
(() => {
  const byId = id => document.getElementById(id);
  const settings = JSON.parse(byId("view-settings").textContent);
  const section = byId("viewer"), canvas = byId("view-canvas"), where = byId("view-where");
  const order = ["mask", "label", "difference"];
  let viewer = null, shown = null, asked = false, waiting = Promise.resolve();

  const unpack = async base64 => {
    const bytes = Uint8Array.from(atob(base64), sign => sign.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Response(stream).text();
  };

  const colormap = entries => {
    const map = { R: [0], G: [0], B: [0], A: [0], I: [0], labels: [""] };
    for (const entry of entries) {
      map.R.push(entry.rgb[0]); map.G.push(entry.rgb[1]); map.B.push(entry.rgb[2]);
      map.A.push(255); map.I.push(entry.value); map.labels.push(entry.name);
    }
    return map;
  };

  const start = async () => {
    const script = document.createElement("script");
    script.textContent = await unpack(byId("view-library").textContent);
    document.head.append(script);
    viewer = new niivue.Niivue({
      show3Dcrosshair: true, crosshairWidth: 0.5, crosshairGap: 4, crosshairColor: [0.9, 0.9, 0.9, 0.6], backColor: [0, 0, 0, 1],
      isNearestInterpolation: true, loadingText: "", multiplanarShowRender: 1, multiplanarLayout: 2,
      clipPlaneColor: [0.5, 0.5, 0.5, 0], isOrientationTextVisible: true,
      logLevel: "silent",
    });
    viewer.onLocationChange = place => describe(place);
    await viewer.attachToCanvas(canvas);
    viewer.setInterpolation(true);
  };

  const layer = () => document.querySelector("input[name=view-layer]:checked").value;

  const describe = place => {
    const parts = [place.mm ? `${[...place.mm].slice(0, 3).map(mm => mm.toFixed(1)).join(", ")} mm` : ""];
    place.values.forEach((value, number) => {
      const name = shown.names[number];
      if (name === "scan") { parts.push(`intensity ${Number(value.value.toPrecision(5))}`); return; }
      const entries = name === "difference" ? settings.differences : settings.structures;
      const found = entries.find(entry => entry.value === Math.round(value.value));
      if (found) parts.push(`${name}: ${found.name}`);
    });
    where.textContent = parts.filter(Boolean).join("; ");
  };

  const apply = () => {
    if (!viewer || !shown) return;
    const chosen = layer(), opacity = byId("view-opacity").value / 100;
    shown.names.forEach((name, number) => {
      if (name !== "scan") viewer.setOpacity(number, name === chosen ? opacity : 0);
    });
    for (const legend of section.querySelectorAll("[data-layers]")) {
      legend.hidden = !legend.dataset.layers.split(" ").includes(chosen);
    }
    const planes = { all: 3, axial: 0, coronal: 1, sagittal: 2, "3d": 4 }[byId("view-planes").value];
    viewer.setSliceType(planes);
    // A plane far outside cuts nothing.
    viewer.setClipPlane(byId("view-cut").checked ? [0, 270, 0] : [2, 0, 0]);
    viewer.updateGLVolume();
  };

  // Of a scan with fewer channels than the chosen one the first is seen.
  const channelOf = view => {
    const chosen = Number(byId("view-channel")?.value ?? 0);
    return chosen <= view.others.length ? chosen : 0;
  };

  const load = async number => {
    if (!viewer) await start();
    const view = settings.views[number], channel = channelOf(view);
    const place = shown && shown.number === number ? viewer.frac2mm(viewer.scene.crosshairPos) : view.at;
    const window = channel ? view.others[channel - 1] : view.window;
    while (viewer.volumes.length) viewer.removeVolume(viewer.volumes[0]);
    const names = ["scan", ...order.filter(name => view.layers.includes(name))];
    shown = { number, names };
    for (const name of names) {
      const isScan = name === "scan";
      const image = await niivue.NVImage.loadFromBase64({
        base64: byId(`volume-${number}-${isScan && channel ? `scan-${channel}` : name}`).textContent, name: `${name}.nii.gz`,
        colormap: "gray", opacity: isScan ? 1 : 0,
        ...(isScan ? { cal_min: window[0], cal_max: window[1] } : {}),
      });
      if (!isScan) image.setColormapLabel(colormap(name === "difference" ? settings.differences : settings.structures));
      viewer.addVolume(image);
    }
    for (const input of document.querySelectorAll("input[name=view-layer]")) {
      input.disabled = input.value !== "none" && !view.layers.includes(input.value);
    }
    viewer.scene.crosshairPos = viewer.mm2frac([...place].slice(0, 3));
    apply();
    viewer.createOnLocationChange();
    byId("view-case").value = String(number);
    byId("view-reduced").textContent = view.reduced ? `Made smaller for this page: ${view.reduced}.` : "";
    if (byId("view-channel")) byId("view-channel").value = String(channel);
    canvas.dataset.channel = String(channel);
    canvas.dataset.shown = String(number);
    document.dispatchEvent(new CustomEvent("case-shown", { detail: number }));
  };

  // One after the other: two loads at once would mix their volumes.
  const show = number => {
    asked = true;
    waiting = waiting.then(() => load(number)).catch(error => {
      section.classList.add("still");
      where.textContent = `The viewer cannot run in this browser (${error.message}); pictures stand in its place.`;
      canvas.dataset.failed = String(error && error.stack || error);
    });
    return waiting;
  };

  document.addEventListener("show-case", event => {
    section.scrollIntoView({ block: "start" });
    show(event.detail);
  });
  byId("view-case").addEventListener("change", event => show(Number(event.target.value)));
  byId("view-channel")?.addEventListener("change", () => shown && show(shown.number));
  for (const id of ["view-opacity", "view-planes", "view-layer", "view-cut"]) byId(id).addEventListener("input", apply);

  // NiiVue's own keys are letters; these go to the same place without the library's handler.
  canvas.addEventListener("keydown", event => {
    const step = { ArrowLeft: [-1, 0, 0], ArrowRight: [1, 0, 0], ArrowDown: [0, -1, 0], ArrowUp: [0, 1, 0],
      PageDown: [0, 0, -1], PageUp: [0, 0, 1] }[event.key];
    if (!step || !viewer) return;
    viewer.moveCrosshairInVox(...step);
    event.preventDefault();
    event.stopImmediatePropagation();
  }, true);

  const watcher = new IntersectionObserver(entries => {
    if (!entries.some(entry => entry.isIntersecting)) return;
    watcher.disconnect();
    // A row may have been clicked already: that case is on its way.
    if (!asked) show(0);
  });
  watcher.observe(section);
})();
