// Drives each .compare: dragging or the arrow keys move the line; radio buttons named Left-… and
// Right-… beside it, where there are any, choose the images. Without them the first image is left
// and the second right.
for (const compare of document.querySelectorAll(".compare")) {
  const range = compare.querySelector("input[type=range]");
  const images = [...compare.querySelectorAll("img")];
  const radios = [...compare.parentElement.querySelectorAll("input[type=radio]")];

  const move = () => {
    compare.style.setProperty("--split", range.value + "%");
  };
  const follow = (event) => {
    const box = compare.getBoundingClientRect();
    range.value = (100 * (event.clientX - box.left)) / box.width;
    move();
  };
  const choose = () => {
    const chosen = (side, otherwise) => {
      const radio = radios.find((r) => r.checked && r.name.startsWith(side));
      return images.find((image) => radio && image.dataset.kind === radio.value) || otherwise;
    };
    const left = chosen("Left", images[0]);
    const right = chosen("Right", images[1]);
    for (const image of images) {
      image.hidden = image !== left && image !== right;
      image.classList.toggle("clipped", image === left && image !== right);
    }
    for (const [side, image] of [["left", left], ["right", right]]) {
      const label = compare.querySelector(".compare-label." + side);
      label.textContent = `${image.dataset.kind} ${image.dataset.caption || ""}`.trim();
    }
  };

  compare.addEventListener("pointerdown", (event) => {
    compare.setPointerCapture(event.pointerId);
    event.preventDefault();
    range.focus({ preventScroll: true });
    follow(event);
  });
  compare.addEventListener("pointermove", (event) => {
    if (compare.hasPointerCapture(event.pointerId)) follow(event);
  });
  range.addEventListener("input", move);
  for (const radio of radios) radio.addEventListener("change", choose);
  move();
  choose();
}
