// The largest batch sizes that fit into a device with the memory that the slider sets.

const capacity = { bytes: data.capacity, listeners: [] };

/** Return the peak at a batch size, interpolated on straight lines between the known points. */
function peakAt(points, value) {
  let index = points.findIndex(([known]) => known >= value);
  if (index < 1) index = index === 0 ? 1 : points.length - 1;
  const [x0, y0] = points[index - 1];
  const [x1, y1] = points[index];
  return y0 + ((y1 - y0) * (value - x0)) / (x1 - x0);
}

/** Return the largest batch size within a capacity: null if nothing is known, Infinity if the peak does not grow. */
function largestBatch(points, bytes) {
  if (points.length < 2) return null;
  const [[x0, y0], [x1, y1]] = points.slice(-2);
  if (y1 <= y0 && y1 <= bytes) return Infinity;
  let low = 0;
  let high = Math.max(x1, y1 > y0 ? Math.ceil(x1 + ((bytes - y1) * (x1 - x0)) / (y1 - y0)) + 1 : x1);
  while (low < high) {
    const middle = Math.ceil((low + high) / 2);
    if (peakAt(points, middle) <= bytes) low = middle;
    else high = middle - 1;
  }
  return low;
}

function batchText(run) {
  if (capacity.bytes === data.capacity && run.answer !== null) return run.answer;
  const found = largestBatch(run.points, capacity.bytes);
  if (found === null) return "-";
  if (found === Infinity) return "any";
  return found === 0 ? "none" : `~${found}`;
}

function showCapacity() {
  document.getElementById("capacity-value").textContent = formatSize(capacity.bytes);
  const rows = data.runs.map((run) => {
    const need = run.peak && (run.peak.reserved ?? run.peak.allocated);
    const fits = need === null ? run.ending : need <= capacity.bytes ? "yes" : `no, ${formatSize(need - capacity.bytes)} over`;
    return element(
      "tr",
      { "data-run": run.name },
      element("td", {}, run.name),
      element("td", { class: "number" }, formatSize(need)),
      element("td", { class: fits === "yes" ? "yes" : "no" }, fits),
      element("td", { class: "number largest" }, batchText(run)),
    );
  });
  document.getElementById("capacity-rows").replaceChildren(...rows);
  for (const listener of capacity.listeners) listener();
}

function setUpCapacity() {
  const needs = data.runs.map((run) => (run.peak ? run.peak.reserved ?? run.peak.allocated : 0));
  const slider = document.getElementById("capacity-slider");
  const most = 2 * Math.max(data.capacity, ...needs);
  const unit = 2 ** Math.max(0, Math.floor(Math.log2(most)) - 9);
  slider.max = Math.ceil(most / unit);
  slider.value = Math.round(data.capacity / unit);
  slider.addEventListener("input", () => {
    capacity.bytes = Number(slider.value) * unit;
    showCapacity();
  });
  document.getElementById("capacity-reset").addEventListener("click", () => {
    slider.value = Math.round(data.capacity / unit);
    capacity.bytes = data.capacity;
    showCapacity();
  });
  document.getElementById("capacity-note").hidden = data.runs.every((run) => run.points.length < 2);
  document.getElementById("capacity").hidden = data.runs.length === 0;
  showCapacity();
}
