"use strict";
// The functions that all parts of the page use: the data, sizes as text, and elements.

const data = JSON.parse(document.getElementById("data").textContent);
const SVG = "http://www.w3.org/2000/svg";

function formatSize(bytes) {
  if (bytes === null || bytes === undefined) return "-";
  if (bytes < 1024) return `${Math.round(bytes)} B`;
  let value = bytes;
  for (const unit of ["KiB", "MiB", "GiB"]) {
    value /= 1024;
    if (value < 1023.995) return `${value.toFixed(2)} ${unit}`;
  }
  return `${(value / 1024).toFixed(2)} TiB`;
}

function formatShare(part, whole) {
  const percent = whole ? (100 * part) / whole : 0;
  return `${percent < 9.95 && percent > 0 ? percent.toFixed(1) : percent.toFixed(0)} %`;
}

/** Make an HTML element. Strings are inserted as text, never as markup. */
function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function drawn(name, attributes, text) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

function colourOf(category) {
  const found = data.categories.find((entry) => entry.name === category);
  return `var(--${found ? found.colour : "dark"})`;
}

function titleOf(category) {
  return category.replaceAll("_", " ");
}

/** Return about `count` round sizes from 0 on, in steps of a power of two. */
function sizeTicks(most, count) {
  let step = 1;
  while (step * count < most) step *= 2;
  const ticks = [];
  for (let tick = 0; tick < most + step; tick += step) ticks.push(tick);
  return ticks;
}
