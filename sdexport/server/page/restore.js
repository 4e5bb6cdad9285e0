// From the settings that an image carries to the state of the form, and what cannot be restored.

const PLAIN = ["prompt", "negative_prompt", "scheduler", "schedule", "num_inference_steps", "guidance_scale", "width", "height", "seed", "strength", "resize_mode", "mask_blur", "paste_back"];
/** Recorded about the image and the server, not arguments of a call. */
const NO_ARGUMENTS = new Set([
  "batch_size", "batch_index", "prompts", "negative_prompts", "seeds", "external", "vae_tile", "max_batch", "model", "model_hash", "backend", "precision",
  "options", "engines", "sampler", "schedule_type", "version", "file", "not_understood", "image", "mask_image", "loras", "controlnets", "t2i_adapters", "ip_adapters",
]);

/** @param settings fields of the image's record; those that are not there have the default
 *  @returns {state, notes}: the form's state, and sentences about what is missing */
export function restored(settings, server, notUnderstood = {}) {
  const values = {};
  const notes = [];
  for (const name of PLAIN) if (settings[name] !== undefined && settings[name] !== null) values[name] = name === "paste_back" ? settings[name] === true : String(settings[name]);
  batch(settings, values, notes);
  values.model = model(settings, server, notes);
  const more = Object.fromEntries(Object.entries(settings).filter(([name, value]) => !PLAIN.includes(name) && !NO_ARGUMENTS.has(name) && value !== null));
  if (Object.keys(more).length) values.more = JSON.stringify(more, null, 1);
  const loras = named(settings.loras, server.loras, "LoRA", notes).map(({ name, scale }) => {
    if (Array.isArray(scale)) notes.push(`The LoRA ${name} had a scale for each image; the first is used.`);
    return { name, scale: Array.isArray(scale) ? scale[0] : scale };
  });
  const controlnets = named(settings.controlnets, server.controlnets, "ControlNet", notes).map(({ name, scale, start, end, images }) => {
    notes.push(`Choose the control image of ${name} again${fileOf(images)}.`);
    return { name, scale, start, end };
  });
  if (settings.image) notes.push(`Choose the initial image again${fileOf(settings.image)}.`);
  if (settings.mask_image) notes.push(`Draw or choose the mask again${fileOf(settings.mask_image)}.`);
  for (const [name, what] of [["t2i_adapters", "T2I-Adapters"], ["ip_adapters", "IP-Adapters"]]) if (settings[name]?.length) notes.push(`${what} are not restored.`);
  for (const name of Object.keys(settings.external ?? {})) notes.push(`The image depends on ${name}, which a file cannot hold.`);
  const unknown = Object.keys(notUnderstood);
  if (unknown.length) notes.push(`Not used: ${unknown.slice(0, 8).join(", ")}${unknown.length > 8 ? ", …" : ""}.`);
  return { state: { values, loras, controlnets }, notes };
}

function batch({ batch_size: size = 1, batch_index: index = 0, prompts, seeds }, values, notes) {
  if (size <= 1) return;
  if (seeds || prompts) {
    notes.push(`The image was number ${index + 1} of a batch of ${size}; it is generated alone.`);
    return;
  }
  values.num_images_per_prompt = String(size);
  values.one_seed = true;
  notes.push(`The image was number ${index + 1} of ${size} with one seed; all are generated.`);
}

function model({ model: name, model_hash: hash }, server, notes) {
  const same = (hash && server.models.find((each) => each.digest && (each.digest.startsWith(hash) || hash.startsWith(each.digest)))) || server.models.find((each) => each.name === name);
  if (!same && name) notes.push(`The model was ${name}, which this server does not have under that name.`);
  return same?.name ?? "";
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
