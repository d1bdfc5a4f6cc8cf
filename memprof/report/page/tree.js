// What holds the peak, as a tree of modules. A branch gets its content when it is opened.

/** Add up what the modules hold in a tree along the dots of their names: {name, bytes, categories, children}. */
function moduleTree(byCategory) {
  const root = { name: "whole peak", bytes: 0, categories: {}, children: new Map() };
  const inner = {};
  for (const module of Object.values(byCategory).flatMap(Object.keys)) {
    for (let dot = module.indexOf("."); dot >= 0; dot = module.indexOf(".", dot + 1)) inner[module.slice(0, dot)] = true;
  }
  for (const [category, modules] of Object.entries(byCategory)) {
    for (const [module, bytes] of Object.entries(modules)) {
      let node = root;
      hold(node, category, bytes);
      // The memory that a module holds itself is listed among its submodules.
      const own = Object.hasOwn(inner, module) ? ".(itself)" : "";
      for (const part of module === "" ? ["(outside the model)"] : `${module}${own}`.split(".")) {
        if (!node.children.has(part)) node.children.set(part, { name: part, bytes: 0, categories: {}, children: new Map() });
        node = node.children.get(part);
        hold(node, category, bytes);
      }
    }
  }
  return root;
}

function hold(node, category, bytes) {
  node.bytes += bytes;
  node.categories[category] = (node.categories[category] ?? 0) + bytes;
}

function treeRow(node, total) {
  const bar = element("span", { class: "bar" });
  for (const { name } of data.categories) {
    const bytes = node.categories[name];
    if (bytes) {
      const style = `background:${colourOf(name)};width:${(100 * bytes) / total}%`;
      bar.append(element("span", { style, title: `${titleOf(name)}: ${formatSize(bytes)}` }));
    }
  }
  return [
    element("span", { class: "name" }, node.name),
    element("span", { class: "number" }, formatSize(node.bytes)),
    element("span", { class: "number" }, formatShare(node.bytes, total)),
    bar,
  ];
}

function branch(node, total) {
  if (!node.children.size) return element("div", { class: "leaf" }, ...treeRow(node, total));
  const made = element("details", {}, element("summary", {}, ...treeRow(node, total)));
  made.addEventListener("toggle", () => {
    if (made.childElementCount > 1) return;
    const children = [...node.children.values()].sort((a, b) => b.bytes - a.bytes);
    made.append(...children.map((child) => branch(child, total)));
  });
  return made;
}

function setUpTree() {
  const shown = data.runs.filter((run) => run.modules);
  if (!shown.length) return;
  const select = document.getElementById("tree-run");
  select.append(...shown.map((run, index) => element("option", { value: index }, run.name)));
  const show = () => {
    const root = moduleTree(shown[select.value].modules);
    const made = branch(root, root.bytes);
    document.getElementById("tree").replaceChildren(made);
    made.open = true;
  };
  select.addEventListener("change", show);
  document.getElementById("modules").hidden = false;
  show();
}

setUpCapacity();
setUpTimelines();
setUpTree();
