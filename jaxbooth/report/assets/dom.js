"use strict";
// Texts from outside reach the page through textContent and setAttribute alone, never as markup.
const data = JSON.parse(document.getElementById("data").textContent);
const byId = id => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";
const PIXEL_ART = 128;

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}
const make = (tag, attributes = {}, ...children) => fill(document.createElement(tag), attributes, children);
const draw = (tag, attributes = {}, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);

function picture(number, alt) {
  const [source, width, height] = data.pictures[number];
  const small = Math.max(width, height) <= PIXEL_ART;
  return make("img", {src: source, alt: alt, width: width, height: height, class: small ? "pixels" : "", draggable: "false"});
}
