// What the server offers, in the form that the page uses.

/** @param info the answer of /v1/server */
export function describeServer(info) {
  const schedulers = info.schedulers ?? [];
  return {
    models: info.models ?? [],
    schedulers: schedulers.map((each) => each.name),
    schedulerLabels: Object.fromEntries(schedulers.map((each) => [each.name, each.label ?? each.name])),
    loras: info.loras ?? [],
    controlnets: info.controlnets ?? [],
    limits: info.limits ?? {},
    /** The schedules of a sampler, or of a model's own one. */
    schedulesOf(scheduler, model) {
      const name = scheduler || model.scheduler;
      return schedulers.find((each) => each.name === name)?.schedules ?? info.schedules ?? [];
    },
  };
}
