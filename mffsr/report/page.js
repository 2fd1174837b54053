
"use strict";
(() => {
  const $ = (id) => document.getElementById(id);
  const stage = $("stage"), divider = $("divider");
  const results = [...$("results").children], sources = [...$("sources").children];
  const choices = [...document.querySelectorAll(".strip button")];
  const zooms = [...document.querySelectorAll("[data-zoom]")];
  const clamp = (value, low, high) => Math.min(Math.max(value, low), high);

  let chosen = choices[0];      // the button of the pair on the stage
  let zoom = 0;                 // screen pixels per picture pixel; 0: as large as fits
  let middle = [0.5, 0.5];      // the part of the picture in the middle of the stage, 0…1
  let wipe = 0.5;               // how much of the visible picture is the photo, 0…1
  let alone = false;            // the photo alone, while a key is held
  let box;                      // where the picture lies on the stage, in CSS pixels

  const shown = () => results.find((image) => !image.hidden);

  function place() {
    const image = shown(), w = +image.getAttribute("width"), h = +image.getAttribute("height");
    const room = [stage.clientWidth, stage.clientHeight];
    const factor = zoom ? zoom / devicePixelRatio : Math.min(room[0] / w, room[1] / h);
    const size = [w * factor, h * factor];
    const start = size.map((side, axis) => {
      if (side <= room[axis] + 0.5) return (room[axis] - side) / 2;
      const at = clamp(room[axis] / 2 - middle[axis] * side, room[axis] - side, 0);
      middle[axis] = (room[axis] / 2 - at) / side;
      return at;
    });
    box = { factor, start, size, room, left: Math.max(0, start[0]), right: Math.min(room[0], start[0] + size[0]) };
    const edge = box.left + (alone ? 1 : wipe) * (box.right - box.left);
    const set = (name, value) => stage.style.setProperty(name, `${value}px`);
    set("--left", start[0]); set("--top", start[1]);
    set("--width", size[0]); set("--height", size[1]);
    set("--wipe", edge); set("--first", box.left); set("--last", room[0] - box.right);
    stage.classList.toggle("large", size[0] > room[0] + 1 || size[1] > room[1] + 1);
    stage.classList.toggle("pixels", factor * devicePixelRatio > 1.01 && zoom > 0);
    const percent = Math.round(wipe * 100);
    divider.setAttribute("aria-valuenow", percent);
    divider.setAttribute("aria-valuetext", `${percent} % ${chosen.dataset.name}`);
    document.querySelector(".tag.left").classList.toggle("away", edge - box.left < 90);
    document.querySelector(".tag.right").classList.toggle("away", box.right - edge < 70);
    for (const button of zooms) button.setAttribute("aria-pressed", +button.dataset.zoom === zoom);
  }

  function choose(button) {
    if (button.dataset.view !== chosen.dataset.view) { zoom = 0; middle = [0.5, 0.5]; }
    chosen = button;
    const { view, frame } = button.dataset;
    for (const image of results) image.hidden = image.dataset.view !== view;
    for (const image of sources) image.hidden = image.dataset.view !== view || image.dataset.frame !== frame;
    for (const other of choices) other.setAttribute("aria-pressed", other === button);
    $("before").textContent = button.dataset.name;
    place();
  }

  // Zooms about a point of the stage, which keeps its place.
  function zoomTo(value, at) {
    const point = at || [box.room[0] / 2, box.room[1] / 2];
    const part = point.map((p, axis) => (p - box.start[axis]) / box.size[axis]);
    const w = box.size[0] / box.factor, h = box.size[1] / box.factor;
    const least = Math.min(box.room[0] / w, box.room[1] / h) * devicePixelRatio;
    zoom = value && value <= least && value !== 1 && value !== 3 ? 0 : Math.min(value, 8);
    if (zoom) {
      const factor = zoom / devicePixelRatio;
      middle = part.map((p, axis) => p + (box.room[axis] / 2 - point[axis]) / ([w, h][axis] * factor));
    }
    place();
  }

  function wipeTo(x) {
    wipe = clamp((x - box.left) / (box.right - box.left), 0, 1);
    place();
  }

  const spot = (event) => {
    const frame = stage.getBoundingClientRect();
    return [event.clientX - frame.left, event.clientY - frame.top];
  };

  // Pointers: one on the divider, or on a picture that fits, wipes; on a larger one it pans; two pinch.
  const held = new Map();
  let wiping = false, pinch = 0;
  stage.addEventListener("pointerdown", (event) => {
    if (event.button) return;
    held.set(event.pointerId, spot(event));
    stage.setPointerCapture(event.pointerId);
    wiping = held.size === 1 && (divider.contains(event.target) || !stage.classList.contains("large"));
    if (wiping && !divider.contains(event.target)) wipeTo(spot(event)[0]);
    stage.classList.toggle("held", !wiping);
    pinch = 0;
  });
  stage.addEventListener("pointermove", (event) => {
    const before = held.get(event.pointerId);
    if (!before) return;
    const now = spot(event);
    held.set(event.pointerId, now);
    if (held.size === 2) {
      const [a, b] = [...held.values()];
      const apart = Math.hypot(a[0] - b[0], a[1] - b[1]);
      if (pinch) zoomTo(box.factor * devicePixelRatio * apart / pinch, [(a[0] + b[0]) / 2, (a[1] + b[1]) / 2]);
      pinch = apart;
    } else if (wiping) {
      wipeTo(now[0]);
    } else {
      middle = middle.map((m, axis) => m - (now[axis] - before[axis]) / box.size[axis]);
      place();
    }
  });
  for (const end of ["pointerup", "pointercancel"]) {
    stage.addEventListener(end, (event) => {
      held.delete(event.pointerId);
      stage.classList.remove("held");
      wiping = false;
    });
  }
  stage.addEventListener("dblclick", (event) => zoomTo(zoom ? 0 : 1, spot(event)));
  stage.addEventListener("wheel", (event) => {  // without a click first, the wheel scrolls the page
    if (!event.ctrlKey && !stage.contains(document.activeElement)) return;
    event.preventDefault();
    zoomTo(box.factor * devicePixelRatio * Math.exp(-event.deltaY / (event.ctrlKey ? 100 : 400)), spot(event));
  }, { passive: false });

  function step(by) {
    const group = choices.filter((button) => button.parentElement === chosen.parentElement);
    choose(group[(group.indexOf(chosen) + by + group.length) % group.length]);
  }

  const arrows = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  stage.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const { key } = event, pans = event.target !== divider && stage.classList.contains("large");
    const arrow = arrows[key];
    if (arrow && pans) {
      middle = middle.map((m, axis) => m + 60 * arrow[axis] / box.size[axis]);
      place();
    } else if (arrow) {
      wipe = clamp(wipe + (arrow[0] - arrow[1]) * (event.shiftKey ? 0.1 : 0.02), 0, 1);
      place();
    } else if (key === "Home" || key === "End") {
      wipe = key === "Home" ? 0 : 1;
      place();
    } else if (key === "0") zoomTo(0);
    else if (key === "1" || key === "3") zoomTo(+key);
    else if (key === "+" || key === "=") zoomTo(box.factor * devicePixelRatio * 1.25);
    else if (key === "-") zoomTo(box.factor * devicePixelRatio / 1.25);
    else if (key === "[" || key === "]") step(key === "[" ? -1 : 1);
    else if (key === " ") { alone = true; place(); }
    else return;
    event.preventDefault();
  });
  for (const end of ["keyup", "focusout"]) {
    stage.addEventListener(end, (event) => {
      if (alone && (end === "focusout" || event.key === " ")) { alone = false; place(); }
    });
  }

  for (const button of zooms) button.addEventListener("click", () => zoomTo(+button.dataset.zoom));
  for (const button of choices) button.addEventListener("click", () => choose(button));
  $("full").hidden = !stage.requestFullscreen;
  $("full").addEventListener("click", () => stage.requestFullscreen());
  new ResizeObserver(place).observe(stage);

  // The focus map: a colour of the legend shows its part alone.
  const labels = $("labels"), plain = labels.src;
  const legend = [...document.querySelectorAll(".legend button")];
  function alonePart(colour) {
    const canvas = document.createElement("canvas");
    canvas.width = labels.naturalWidth;
    canvas.height = labels.naturalHeight;
    const context = canvas.getContext("2d");
    context.drawImage(labels, 0, 0);
    const pixels = context.getImageData(0, 0, canvas.width, canvas.height), data = pixels.data;
    const wanted = parseInt(colour.slice(1), 16);
    for (let i = 0; i < data.length; i += 4) {
      if (((data[i] << 16) | (data[i + 1] << 8) | data[i + 2]) !== wanted) data[i] = data[i + 1] = data[i + 2] = 48;
    }
    context.putImageData(pixels, 0, 0);
    return canvas.toDataURL();
  }
  for (const button of legend) {
    button.addEventListener("click", async () => {
      const on = button.getAttribute("aria-pressed") !== "true";
      for (const other of legend) other.setAttribute("aria-pressed", on && other === button);
      labels.src = plain;
      await labels.decode();
      if (on && button.getAttribute("aria-pressed") === "true") labels.src = alonePart(button.dataset.colour);
    });
  }

  choose(chosen);
})();
