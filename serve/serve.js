// Sends a picture to the server, twice: for the bicubic and for the network's enlargement.
const $ = (id) => document.getElementById(id);
const mostBytes = Number(document.body.dataset.mostBytes);
let pictures = []; // all that were given; `picture` is the one that is shown
let picture = null;
let running = new AbortController();
let urls = [];

const say = (text, kind = "") => {
  $("status").textContent = text;
  $("status").className = kind;
};

const request = async (method, scale, file, signal) => {
  const url = `enlarge/${scale}/${method}?name=${encodeURIComponent(file.name)}`;
  const response = await fetch(url, { method: "POST", body: file, signal });
  if (!response.ok) throw new Error(await response.text());
  return {
    blob: await response.blob(),
    seconds: Number(response.headers.get("X-Seconds")),
    suffix: response.headers.get("X-Suffix"),
    note: decodeURIComponent(response.headers.get("X-Note") || ""),
  };
};

const show = async (image, blob) => {
  urls.push(URL.createObjectURL(blob));
  image.src = urls.at(-1);
  await image.decode();
};

const lay = () => {
  const actual = document.querySelector("[name=view]:checked").value === "actual";
  const { naturalWidth: width, naturalHeight: height } = $("srcnn");
  const compare = document.querySelector(".compare");
  const pixels = width / devicePixelRatio;
  compare.style.aspectRatio = `${width} / ${height}`;
  compare.style.width = actual ? `${pixels}px` : "";
  compare.style.maxWidth = actual ? "none" : `min(${pixels}px, 74vh * ${width} / ${height})`;
  $("view").classList.toggle("actual", actual);
  $("view").scrollTo((pixels - $("view").clientWidth) / 2, $("view").scrollHeight / 4);
};

const enlarge = async () => {
  running.abort();
  if (!picture) return;
  const file = picture;
  const scale = document.querySelector("[name=scale]:checked").value;
  running = new AbortController();
  const { signal } = running;
  $("result").hidden = true;
  if (file.size > mostBytes) {
    const limit = `${mostBytes / 2 ** 20} MB`;
    say(`${file.name} is larger than ${limit}; python upscale.py takes it.`, "error");
    return;
  }
  say(`Enlarging ${file.name} …`, "busy");
  try {
    const bicubic = await request("bicubic", scale, file, signal);
    const srcnn = await request("srcnn", scale, file, signal);
    urls.forEach((url) => URL.revokeObjectURL(url));
    urls = [];
    await Promise.all([show($("bicubic"), bicubic.blob), show($("srcnn"), srcnn.blob)]);
    if (signal.aborted) return;
    const { naturalWidth: width, naturalHeight: height } = $("srcnn");
    $("name").textContent = file.name;
    $("facts").textContent =
      `${width / scale}×${height / scale} → ${width}×${height} in ${srcnn.seconds.toFixed(1)} s. ` +
      "Left of the line: bicubic; right: SRCNN.";
    $("download").href = $("srcnn").src;
    $("download").download = file.name.replace(/\.[^.]*$/, "") + `_x${scale}${srcnn.suffix}`;
    $("result").hidden = false;
    document.body.classList.add("loaded");
    say(srcnn.note && `Note: ${srcnn.note}.`);
    lay();
  } catch (error) {
    let text = error.message;
    if (error instanceof TypeError) {
      const readable = await file.slice(0, 1).arrayBuffer().then(() => true, () => false);
      text = readable ? "The program that serves this page does not answer; is it running?"
        : `${file.name} cannot be read: it is a folder, or has changed; choose it again.`;
    }
    if (!signal.aborted) say(text, "error");
  }
};

const choose = (file) => {
  picture = file;
  for (const button of $("pictures").children) {
    button.setAttribute("aria-pressed", pictures[button.value] === file);
  }
  enlarge();
};

const take = (files) => {
  if (!files.length) return;
  pictures = [...files];
  const buttons = pictures.map((file, number) => {
    const button = document.createElement("button");
    button.textContent = file.name;
    button.value = number;
    button.addEventListener("click", () => choose(file));
    return button;
  });
  $("pictures").replaceChildren(...buttons);
  $("pictures").hidden = buttons.length < 2;
  choose(pictures[0]);
};

$("file").addEventListener("change", () => {
  take([...$("file").files]);
  $("file").value = "";
});
document.addEventListener("paste", (event) => take(event.clipboardData.files));
for (const name of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(name, (event) => {
    event.preventDefault();
    document.body.classList.toggle("over", name === "dragover");
    if (name === "drop") take(event.dataTransfer.files);
  });
}
for (const radio of document.querySelectorAll("[name=scale]")) {
  radio.addEventListener("change", enlarge);
}
for (const radio of document.querySelectorAll("[name=view]")) radio.addEventListener("change", lay);
