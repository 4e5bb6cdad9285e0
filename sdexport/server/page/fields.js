// The fields of the form that hold one text or number each.

/** Name of the argument, and of the element -> what is checked. `limit`: the server's name of the
 *  maximum. `of`: sent only with an image or a mask. */
export const FIELDS = {
  prompt: {},
  negative_prompt: {},
  model: {},
  scheduler: {},
  schedule: {},
  num_inference_steps: { label: "Steps", integer: true, min: 1, limit: "max_steps" },
  guidance_scale: { label: "Guidance", min: 0, max: 1000 },
  width: { label: "Width", integer: true, min: 8, multiple: true },
  height: { label: "Height", integer: true, min: 8, multiple: true },
  num_images_per_prompt: { label: "Images", integer: true, min: 1, limit: "max_images" },
  seed: {},
  one_seed: {},
  strength: { label: "Strength", min: 0, max: 1, of: "image" },
  resize_mode: { of: "image" },
  mask_blur: { label: "Mask blur", min: 0, max: 1000, of: "mask" },
  paste_back: { of: "mask" },
  more: {},
};

/** Fields that are no argument as they stand. */
export const COMPOSED = ["prompt", "seed", "one_seed", "more"];

/** Every argument that the form makes. */
export const ARGUMENTS = [
  ...Object.keys(FIELDS).filter((name) => name !== "one_seed" && name !== "more"),
  ...["image", "mask_image", "loras", "controlnets", "previews"],
];
