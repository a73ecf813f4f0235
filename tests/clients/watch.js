// The npm client with its promises and watches: node watch.js PORT
const Consul = require("consul");
const assert = require("node:assert");

const consul = new Consul({ host: "127.0.0.1", port: process.argv[2] });
const seen = (watch, wanted) =>
  new Promise((resolve, reject) => {
    const late = setTimeout(() => reject(new Error("nothing was seen in time")), 20000);
    watch.on("error", reject);
    watch.on("change", (data) => {
      if (!wanted(data)) return;
      clearTimeout(late);
      watch.end();
      resolve(data);
    });
  });

(async () => {
  await consul.agent.service.register({ name: "job", id: "job-1", port: 70, tags: ["a"], check: { ttl: "10s" } });
  const health = consul.watch({ method: consul.health.service, options: { service: "job", passing: true } });
  const up = seen(health, (data) => data.length === 1);
  await consul.agent.check.pass("service:job-1");
  assert.equal((await up)[0].Service.ID, "job-1");

  const key = consul.watch({ method: consul.kv.get, options: { key: "shop/level" } });
  const set = seen(key, (data) => data && data.Value === "info");
  assert.equal(await consul.kv.set("shop/level", "info"), true);
  await set;
  assert.deepEqual(await consul.kv.keys("shop/"), ["shop/level"]);
  assert.equal(await consul.kv.get("nothing"), undefined);

  const session = await consul.session.create({ ttl: "10s", lockdelay: "0s" });
  assert.equal(await consul.kv.set({ key: "lock", value: "x", acquire: session.ID }), true);
  assert.equal((await consul.session.get(session.ID)).ID, session.ID);
  await consul.session.destroy(session.ID);
  assert.equal((await consul.kv.get("lock")).Session, undefined);

  const done = await consul.transaction.create([{ KV: { Verb: "set", Key: "t", Value: Buffer.from("v").toString("base64") } }]);
  assert.equal(done.Errors, null);
  const event = await consul.event.fire({ name: "deploy", payload: "now" });
  assert.equal((await consul.event.list("deploy"))[0].ID, event.ID);
  const query = await consul.query.create({ name: "jobs", service: { service: "job" } });
  assert.equal((await consul.query.execute("jobs")).Nodes.length, 1);
  await consul.query.destroy(query.ID);
  assert.deepEqual(Object.keys(await consul.catalog.service.list()), ["job"]);
  assert.equal((await consul.catalog.service.nodes("job"))[0].ServicePort, 70);
  await consul.agent.service.deregister("job-1");
  await consul.kv.del({ key: "", recurse: true });
  console.log("all of it");
})().catch((error) => {
  console.error(error);
  process.exit(1);
});
