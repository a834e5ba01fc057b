// Connects, answers every direct message with what it got, and says so.
// usage: node echo.js URL VERSION USER TOKEN DEVICE
const mqtt = require("mqtt");

const [url, version, username, password, clientId] = process.argv.slice(2);
const client = mqtt.connect(url, {
  protocolVersion: Number(version),
  username,
  password,
  clientId,
  clean: false,
  reconnectPeriod: 0,
  properties: version === "5" ? { sessionExpiryInterval: 3600 } : undefined,
});

client.on("connect", () => console.log("connected"));
client.on("error", (err) => {
  console.log("error: " + err.message);
  process.exit(1);
});
client.on("message", (topic, payload) => {
  if (!/^dm\/[^/]+$/.test(topic)) return;
  client.publish(topic, payload, { qos: 1 }, (err) => {
    console.log(err ? "error: " + err.message : "acknowledged");
    client.end();
  });
});
