"use strict";
(() => {
  const byId = id => document.getElementById(id);
  const state = byId("state"), canvas = byId("canvas");
  const colours = [[230, 159, 0], [86, 180, 233], [0, 158, 115], [204, 121, 167], [213, 94, 0], [0, 114, 178], [240, 228, 66], [153, 153, 153]];
  let viewer = null, model = null, names = new Map(), address = null;

  const say = (text, bad) => { state.textContent = text; state.className = bad ? "bad" : ""; };
  const headers = () => byId("token").value ? { Authorization: `Bearer ${byId("token").value}` } : {};

  const ask = async (path, options) => {
    const response = await fetch(path, { ...options, headers: headers() });
    const answer = await response.json();
    if (response.status === 401) byId("token-row").hidden = false;
    if (!response.ok) throw new Error(answer.error || `the service answers ${response.status}`);
    return answer;
  };

  const loadModel = async () => {
    if (model) return;
    model = await ask("/api/model");
    byId("model").textContent = `${model.dataset}: ${model.model}`;
    byId("channels").textContent = model.channels.length > 1
      ? `Channels: ${model.channels.join(", ")}; several files are taken in the order of their names.` : "";
  };

  const showTable = structures => {
    const rows = structures.map((each, number) => {
      const row = document.createElement("tr");
      const square = document.createElement("span");
      square.className = "square";
      square.style.background = `rgb(${colours[number % colours.length]})`;
      const cells = [each.name, each.value, each.volume_ml.toFixed(3)].map((text, place) => {
        const cell = document.createElement(place ? "td" : "th");
        if (place) cell.className = "number"; else cell.append(square);
        cell.append(String(text));
        return cell;
      });
      row.append(...cells);
      return row;
    });
    byId("volumes").replaceChildren(...rows);
  };

  const showDoubt = answer => {
    const { score, doubtful, words, remarks } = answer.doubt;
    byId("doubt").textContent = `${score.toFixed(2)}, ${words}`;
    byId("doubt").className = doubtful ? "bad" : "";
    byId("remarks").replaceChildren(...[...answer.remarks, ...remarks].map(text => {
      const line = document.createElement("li");
      line.textContent = text;
      return line;
    }));
  };

  const colormap = structures => {
    const map = { R: [0], G: [0], B: [0], A: [0], I: [0], labels: [""] };
    structures.forEach((each, number) => {
      const [red, green, blue] = colours[number % colours.length];
      map.R.push(red); map.G.push(green); map.B.push(blue); map.A.push(255); map.I.push(each.value); map.labels.push(each.name);
    });
    return map;
  };

  const describe = place => {
    const parts = [[...place.mm].slice(0, 3).map(mm => mm.toFixed(1)).join(", ") + " mm"];
    if (place.values[0]) parts.push(`intensity ${Number(place.values[0].value.toPrecision(5))}`);
    const found = place.values[1] && names.get(Math.round(place.values[1].value));
    if (found) parts.push(found);
    byId("where").textContent = parts.join("; ");
  };

  const apply = () => {
    if (!viewer || viewer.volumes.length < 2) return;
    viewer.setOpacity(1, byId("opacity").value / 100);
    viewer.setSliceType({ all: 3, axial: 0, coronal: 1, sagittal: 2, "3d": 4 }[byId("planes").value]);
  };

  const show = async (file, answer) => {
    if (!viewer) {
      viewer = new niivue.Niivue({
        show3Dcrosshair: true, crosshairWidth: 0.5, backColor: [0, 0, 0, 1], isNearestInterpolation: true, loadingText: "",
        multiplanarShowRender: 1, multiplanarLayout: 2, isOrientationTextVisible: true, dragAndDropEnabled: false, logLevel: "silent",
      });
      viewer.onLocationChange = describe;
      await viewer.attachToCanvas(canvas);
      viewer.setInterpolation(true);
    }
    while (viewer.volumes.length) viewer.removeVolume(viewer.volumes[0]);
    // NIfTI comes from this machine's disk; what the viewer does not read the service sends back as NIfTI.
    viewer.addVolume(answer.view_scan
      ? await niivue.NVImage.loadFromBase64({ base64: answer.view_scan, name: "scan.nii.gz", colormap: "gray" })
      : await niivue.NVImage.loadFromFile({ file, name: file.name, colormap: "gray" }));
    const base64 = answer.view_mask || answer.mask;
    const mask = await niivue.NVImage.loadFromBase64({ base64, name: "mask.nii.gz", colormap: "gray", opacity: 0.5 });
    mask.setColormapLabel(colormap(answer.structures));
    viewer.addVolume(mask);
    viewer.setClipPlane([2, 0, 0]);
    apply();
    viewer.updateGLVolume();
    viewer.createOnLocationChange();
    canvas.dataset.shown = String(Number(canvas.dataset.shown || 0) + 1);
  };

  const predict = async () => {
    await loadModel();
    const chosen = [...byId("files").files].sort((a, b) => a.name < b.name ? -1 : 1);
    if (!chosen.length) throw new Error("choose a scan first");
    const form = new FormData();
    // The service wants no names.
    chosen.forEach((file, number) => form.append("scan", file, `channel_${number}`));
    say("Sent; the mask comes when it is this scan's turn.");
    const format = byId("format").value;
    const answer = await ask(`/api/predict?answer=view${format && `&format=${format}`}`, { method: "POST", body: form });
    names = new Map(answer.structures.map(each => [each.value, each.name]));
    showTable(answer.structures);
    showDoubt(answer);
    const bytes = Uint8Array.from(atob(answer.mask), sign => sign.charCodeAt(0));
    if (address) URL.revokeObjectURL(address);
    address = URL.createObjectURL(new Blob([bytes], { type: "application/octet-stream" }));
    byId("download").href = address;
    byId("download").download = answer.file;
    byId("result").hidden = false;
    say(`Done in ${answer.seconds.predicted.toFixed(1)} s.`);
    try {
      await show(chosen[0], answer);
    } catch (error) {
      byId("where").textContent = `The viewer cannot show it here (${error.message}); the mask can be downloaded.`;
      canvas.dataset.failed = String(error && error.stack || error);
    }
  };

  byId("form").addEventListener("submit", event => {
    event.preventDefault();
    byId("predict").disabled = true;
    predict().catch(error => say(error.message, true)).finally(() => { byId("predict").disabled = false; });
  });
  for (const id of ["opacity", "planes"]) byId(id).addEventListener("input", apply);
  byId("token").addEventListener("change", () => loadModel().then(() => say("")).catch(error => say(error.message, true)));
  loadModel().catch(error => say(error.message, true));
})();
