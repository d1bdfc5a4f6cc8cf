// The memory during one step with a panel for each optimizer, stacked by category, with hover, brush and toggles.

const PANEL = { height: 150, left: 66, right: 8, top: 6, bottom: 18 };
const view = { from: 0, to: 1, panels: [], hidden: new Set() };

/** Return the level of an owner at every point of its timeline; the data lists it only where it changes. */
function unfold(owner, count) {
  const levels = new Float64Array(count);
  owner.points.forEach((point, index) => {
    levels.fill(owner.levels[index], point);
  });
  return levels;
}

function prepare(run) {
  const count = run.timeline.events.length;
  const owners = run.timeline.owners.map((owner) => ({ ...owner, at: unfold(owner, count) }));
  const stacks = data.categories
    .map(({ name }) => ({ name, at: new Float64Array(count) }))
    .filter(({ name, at }) => {
      for (const owner of owners) if (owner.category === name) owner.at.forEach((level, point) => (at[point] += level));
      return at.some((level) => level > 0);
    });
  return { run, owners, stacks, timeline: run.timeline };
}

function phaseAt(timeline, event) {
  return timeline.phases.filter(({ start }) => start <= event).at(-1).phase;
}

class Panel {
  constructor(prepared, most) {
    Object.assign(this, prepared);
    this.ticks = sizeTicks(most, 4);
    this.svg = drawn("svg", {
      tabindex: "0", role: "img",
      "aria-label": `${this.run.name}: peak ${formatSize(this.run.peak.allocated)} in ${this.run.peak.phase}`,
    });
    this.box = element("div", { class: "panel", "data-run": this.run.name }, element("h3", {}, this.run.name), this.svg);
    this.cursor = null;
    this.listen();
  }

  get right() {
    return Math.max(PANEL.left + 50, this.svg.clientWidth - PANEL.right);
  }

  x(event) {
    const share = (event - view.from) / (view.to - view.from);
    return PANEL.left + (this.right - PANEL.left) * share;
  }

  y(bytes) {
    const room = PANEL.height - PANEL.top - PANEL.bottom;
    return PANEL.top + room * (1 - bytes / this.ticks.at(-1));
  }

  /** Return the points in view and one more on either side, so that the curves reach the edges. */
  visible() {
    const events = this.timeline.events;
    let first = events.findIndex((event) => event >= view.from);
    if (first < 0) return [];
    let last = events.findLastIndex((event) => event <= view.to);
    first = Math.max(0, first - 1);
    last = Math.min(events.length - 1, last + 1);
    return Array.from({ length: last - first + 1 }, (_, index) => first + index);
  }

  path(points, levelOf) {
    return points.map((point) => `${this.x(this.timeline.events[point]).toFixed(1)} ${this.y(levelOf(point)).toFixed(1)}`);
  }

  draw() {
    const parts = [];
    const points = this.visible();
    const below = new Float64Array(this.timeline.events.length);
    const clip = `clip${view.panels.indexOf(this)}`;
    const inner = { x: PANEL.left, y: 0, width: this.right - PANEL.left, height: PANEL.height };
    const clipPath = drawn("clipPath", { id: clip });
    clipPath.append(drawn("rect", inner));
    const curves = drawn("g", { "clip-path": `url(#${clip})` });
    this.drawPhases(curves);
    if (points.length) {
      for (const { name, at } of this.stacks) {
        const floor = this.path(points, (point) => below[point]).reverse();
        at.forEach((level, point) => (below[point] += level));
        const roof = this.path(points, (point) => below[point]);
        curves.append(drawn("path", { d: `M${[...roof, ...floor].join("L")}Z`, style: `fill:${colourOf(name)}` }));
      }
      curves.append(drawn("path", { d: `M${this.path(points, (p) => this.timeline.allocated[p]).join("L")}`, class: "top" }));
      if (this.timeline.reserved) {
        curves.append(drawn("path", { d: `M${this.path(points, (p) => this.timeline.reserved[p]).join("L")}`, class: "reserved" }));
      }
    }
    for (const tick of this.ticks) {
      parts.push(drawn("path", { d: `M${PANEL.left} ${this.y(tick)}H${this.right}`, class: "grid" }));
      parts.push(drawn("text", { x: PANEL.left - 6, y: this.y(tick) + 4, "text-anchor": "end" }, formatSize(tick).replace(/\.00? /, " ")));
    }
    this.drawCapacity(curves);
    this.overlay = drawn("g", {});
    this.svg.replaceChildren(clipPath, ...parts, curves, this.overlay);
  }

  drawPhases(curves) {
    const { phases, n } = this.timeline;
    phases.forEach(({ phase, start }, index) => {
      const left = this.x(Math.max(start, view.from));
      const right = this.x(Math.min(index + 1 < phases.length ? phases[index + 1].start : n, view.to));
      if (right <= left) return;
      if (index % 2) curves.append(drawn("rect", { x: left, y: PANEL.top, width: right - left, height: PANEL.height - PANEL.top - PANEL.bottom, class: "band" }));
      if (right - left > 7 * phase.length) {
        curves.append(drawn("text", { x: (left + right) / 2, y: PANEL.height - 5, "text-anchor": "middle" }, phase));
      }
    });
  }

  drawCapacity(curves) {
    if (capacity.bytes > this.ticks.at(-1)) return;
    const y = this.y(capacity.bytes);
    curves.append(drawn("path", { d: `M${PANEL.left} ${y}H${this.right}`, class: "limit" }));
  }

  eventAt(mouse) {
    const frame = this.svg.getBoundingClientRect();
    const share = (mouse.clientX - frame.left - PANEL.left) / (this.right - PANEL.left);
    return view.from + Math.min(1, Math.max(0, share)) * (view.to - view.from);
  }

  nearest(event) {
    const events = this.timeline.events;
    let best = 0;
    events.forEach((known, point) => {
      if (Math.abs(known - event) < Math.abs(events[best] - event)) best = point;
    });
    return best;
  }

  point(to) {
    this.cursor = Math.min(this.timeline.events.length - 1, Math.max(0, to));
    const x = this.x(this.timeline.events[this.cursor]);
    this.overlay.replaceChildren(drawn("path", { d: `M${x} ${PANEL.top}V${PANEL.height - PANEL.bottom}`, class: "cursor" }));
    showAlive(this, this.cursor);
  }

  listen() {
    let began = null;
    this.svg.addEventListener("pointerdown", (mouse) => {
      began = this.eventAt(mouse);
      this.svg.setPointerCapture(mouse.pointerId);
    });
    this.svg.addEventListener("pointermove", (mouse) => {
      const event = this.eventAt(mouse);
      this.point(this.nearest(event));
      if (began !== null) this.drawBrush(began, event);
    });
    this.svg.addEventListener("pointerup", (mouse) => {
      const [from, to] = [began, this.eventAt(mouse)].sort((a, b) => a - b);
      began = null;
      if (to - from > (view.to - view.from) / 100) zoom(from, to);
    });
    this.svg.addEventListener("dblclick", () => zoom(0, view.whole));
    this.svg.addEventListener("keydown", (key) => {
      const step = { ArrowLeft: -1, ArrowRight: 1 }[key.key];
      if (step === undefined) return;
      key.preventDefault();
      this.point((this.cursor ?? this.nearest(view.from)) + step);
    });
  }

  drawBrush(from, to) {
    const [left, right] = [this.x(from), this.x(to)].sort((a, b) => a - b);
    this.overlay.append(drawn("rect", { x: left, y: PANEL.top, width: right - left, height: PANEL.height - PANEL.top - PANEL.bottom, class: "brush" }));
  }
}

/** Show what is alive at a point: by category, and by module and operator. */
function showAlive(panel, point) {
  const { timeline, run } = panel;
  const total = timeline.allocated[point];
  const event = timeline.events[point];
  const reserved = timeline.reserved ? `, reserved ${formatSize(timeline.reserved[point])}` : "";
  const categories = panel.stacks.filter(({ at }) => at[point]).map(({ name, at }) => row([boxed(name)], at[point], total));
  const owners = panel.owners
    .filter(({ at }) => at[point])
    .sort((a, b) => b.at[point] - a.at[point])
    .slice(0, 14)
    .map((owner) => row(ownerName(owner), owner.at[point], total));
  document.getElementById("alive").replaceChildren(
    element("h3", {}, run.name),
    element("p", {}, `${formatSize(total)} allocated${reserved}`, element("br"), `${phaseAt(timeline, event)}, after ${event} of ${timeline.n} allocations and frees`),
    element("table", { class: "categories" }, ...categories),
    element("h3", {}, "by module and operator"),
    element("table", { class: "owners" }, ...owners),
  );
}

function boxed(category) {
  return element("span", {}, element("span", { class: "box", style: `background:${colourOf(category)}` }), titleOf(category));
}

function ownerName(owner) {
  const box = element("span", { class: "box", style: `background:${colourOf(owner.category)}`, title: titleOf(owner.category) });
  const name = owner.module === null ? "smaller ones" : owner.module || "(outside the model)";
  return [box, name, owner.operator ? element("span", { class: "muted" }, ` ${owner.operator}`) : ""];
}

function row(name, bytes, total) {
  return element("tr", {}, element("td", {}, ...name), element("td", { class: "number" }, formatSize(bytes)), element("td", { class: "number" }, formatShare(bytes, total)));
}

function zoom(from, to) {
  view.from = from;
  view.to = to;
  document.getElementById("zoom-reset").disabled = from === 0 && to === view.whole;
  drawAll();
}

function drawAll() {
  for (const panel of view.panels) if (!view.hidden.has(panel.run.name)) panel.draw();
}

function toggleFor(panel) {
  const box = element("input", { type: "checkbox", checked: "" });
  box.addEventListener("change", () => {
    panel.box.hidden = !box.checked;
    if (box.checked) view.hidden.delete(panel.run.name);
    else view.hidden.add(panel.run.name);
    drawAll();
  });
  return element("label", {}, box, ` ${panel.run.name}`);
}

function setUpTimelines() {
  const prepared = data.runs.filter((run) => run.timeline).map(prepare);
  if (!prepared.length) return;
  const tops = prepared.map(({ timeline }) => Math.max(...timeline.allocated, ...(timeline.reserved ?? [])));
  view.panels = prepared.map((one) => new Panel(one, Math.max(...tops)));
  view.whole = view.to = Math.max(1, ...prepared.map(({ timeline }) => timeline.n));
  document.getElementById("panels").append(...view.panels.map((panel) => panel.box));
  document.getElementById("toggles").append(...view.panels.map(toggleFor));
  const used = data.categories.filter(({ name }) => view.panels.some((panel) => panel.stacks.some((stack) => stack.name === name)));
  document.getElementById("legend").append(...used.map(({ name }) => boxed(name)));
  document.getElementById("zoom-reset").addEventListener("click", () => zoom(0, view.whole));
  document.getElementById("timelines").hidden = false;
  capacity.listeners.push(drawAll);
  window.addEventListener("resize", drawAll);
  drawAll();
}
