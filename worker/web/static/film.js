// Window and zoom of the films on a study's page: without this script they are plain pictures that open by a click.
"use strict";

const frames = [...document.querySelectorAll(".frame")];
const control = (id) => document.getElementById(id);
const place = { x: 0, y: 0 };

function draw() {
  const zoom = control("zoom").value / 100;
  const filter = `${control("invert").checked ? "invert(1) " : ""}brightness(${control("brightness").value}%) contrast(${control("contrast").value}%)`;
  for (const frame of frames) {
    const picture = frame.querySelector("img");
    picture.style.filter = filter;
    picture.style.transform = `translate(${place.x}%, ${place.y}%) scale(${zoom})`;
    frame.classList.toggle("zoomed", zoom > 1);
  }
}

function keepInside() {
  const most = 50 * (control("zoom").value / 100 - 1);
  for (const axis of ["x", "y"]) place[axis] = Math.min(Math.max(place[axis], -most), most);
}

function dragging(frame) {
  let from = null, moved = false;
  frame.addEventListener("pointerdown", (event) => {
    from = { x: event.clientX, y: event.clientY, at: { ...place } };
    moved = false;
  });
  frame.addEventListener("pointermove", (event) => {
    if (!from || event.buttons === 0 || !frame.classList.contains("zoomed")) return;
    moved ||= Math.hypot(event.clientX - from.x, event.clientY - from.y) > 4;
    place.x = from.at.x + (100 * (event.clientX - from.x)) / frame.clientWidth;
    place.y = from.at.y + (100 * (event.clientY - from.y)) / frame.clientHeight;
    keepInside();
    draw();
  });
  frame.addEventListener("click", (event) => { if (moved) event.preventDefault(); });
  frame.addEventListener("dragstart", (event) => event.preventDefault());
  frame.addEventListener("wheel", (event) => {
    event.preventDefault();
    control("zoom").value = Number(control("zoom").value) - Math.sign(event.deltaY) * 20;
    keepInside();
    draw();
  }, { passive: false });
}

for (const id of ["brightness", "contrast", "zoom", "invert"]) {
  control(id).addEventListener("input", () => { keepInside(); draw(); });
}
control("film-reset").addEventListener("click", () => {
  Object.assign(place, { x: 0, y: 0 });
  control("brightness").value = control("contrast").value = control("zoom").value = 100;
  control("invert").checked = false;
  draw();
});
frames.forEach(dragging);
control("film-tools").hidden = false;
