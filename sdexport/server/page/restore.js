// From the settings that an image carries to the state of the form, and what cannot be restored.

/** Arguments with a field of their own. */
const PLAIN = [
  ...["prompt", "negative_prompt", "scheduler", "schedule", "num_inference_steps", "guidance_scale"],
  ...["width", "height", "seed", "strength", "resize_mode", "mask_blur", "paste_back"],
];
/** Recorded about the image and the server, or restored in another way. */
const NO_ARGUMENTS = [
  ...["batch_size", "batch_index", "prompts", "negative_prompts", "seeds", "external", "vae_tile"],
  ...["max_batch", "model", "model_hash", "backend", "precision", "options", "engines", "sampler"],
  ...["schedule_type", "version", "file", "not_understood", "image", "mask_image", "loras"],
  ...["controlnets", "t2i_adapters", "ip_adapters"],
];
const MOST_NAMED = 8;

/** @param settings fields of the image's record; those that are not there have the default
 *  @param notUnderstood settings of other programs, by name
 *  @returns {state, notes}: the form's state, and sentences about what is missing */
export function restored(settings, server, notUnderstood = {}) {
  const notes = [];
  const values = { ...plainValues(settings), ...batch(settings, notes) };
  values.model = model(settings, server, notes);
  const isOther = ([name, value]) => !PLAIN.includes(name) && !NO_ARGUMENTS.includes(name) && value !== null;
  const more = Object.fromEntries(Object.entries(settings).filter(isOther));
  if (Object.keys(more).length) values.more = JSON.stringify(more, null, 1);
  const loras = named(settings.loras, server.loras, "LoRA", notes).map(({ name, scale }) => {
    if (Array.isArray(scale)) notes.push(`The LoRA ${name} had a scale for each image; the first is used.`);
    return { name, scale: Array.isArray(scale) ? scale[0] : scale };
  });
  const nets = named(settings.controlnets, server.controlnets, "ControlNet", notes);
  const controlnets = nets.map(({ name, scale, start, end, images }) => {
    notes.push(`Choose the control image of ${name} again${fileOf(images)}.`);
    return { name, scale, start, end };
  });
  inputs(settings, notes);
  const unknown = Object.keys(notUnderstood);
  const rest = unknown.length > MOST_NAMED ? ", …" : "";
  if (unknown.length) notes.push(`Not used: ${unknown.slice(0, MOST_NAMED).join(", ")}${rest}.`);
  return { state: { values, loras, controlnets }, notes };
}

function plainValues(settings) {
  const found = PLAIN.filter((name) => (settings[name] ?? null) !== null);
  const valueOf = (name) => (name === "paste_back" ? settings[name] === true : String(settings[name]));
  return Object.fromEntries(found.map((name) => [name, valueOf(name)]));
}

/** Name the inputs that a file does not hold. */
function inputs(settings, notes) {
  const { image, mask_image: mask, t2i_adapters: t2i, ip_adapters: ip, external } = settings;
  if (image) notes.push(`Choose the initial image again${fileOf(image)}.`);
  if (mask) notes.push(`Draw or choose the mask again${fileOf(mask)}.`);
  if (t2i?.length) notes.push("T2I-Adapters are not restored.");
  if (ip?.length) notes.push("IP-Adapters are not restored.");
  for (const name of Object.keys(external ?? {})) {
    notes.push(`The image depends on ${name}, which a file cannot hold.`);
  }
}

/** The fields for an image of a batch. */
function batch({ batch_size: size = 1, batch_index: index = 0, prompts, seeds }, notes) {
  if (size <= 1) return {};
  if (seeds || prompts) {
    notes.push(`The image was number ${index + 1} of a batch of ${size}; it is generated alone.`);
    return {};
  }
  notes.push(`The image was number ${index + 1} of ${size} with one seed; all are generated.`);
  return { num_images_per_prompt: String(size), one_seed: true };
}

function model(settings, server, notes) {
  const same = modelName(settings, server);
  const { model: name } = settings;
  if (!same && name) notes.push(`The model was ${name}, which this server does not have.`);
  return same;
}

/** The server's name of a model, by its hash or else by its name; "" if it has no such model. */
export function modelName({ model: name, model_hash: hash }, { models }) {
  const fits = ({ digest }) => digest && hash && (digest.startsWith(hash) || hash.startsWith(digest));
  return (models.find(fits) ?? models.find((each) => each.name === name))?.name ?? "";
}

function named(entries, offered, what, notes) {
  const found = [];
  for (const each of entries ?? []) {
    if (offered.includes(each.name)) found.push(each);
    else notes.push(`The ${what} ${each.name} is not on this server, and left out.`);
  }
  return found;
}

function fileOf(images) {
  const names = (images ?? []).map((each) => each?.name).filter(Boolean);
  return names.length ? ` (${names.join(", ")})` : "";
}
