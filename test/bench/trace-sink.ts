import { createServer } from 'node:http';
import { parentPort } from 'node:worker_threads';

// A thread that takes spans as a collector does, and throws them away. Its first message is its address.

const server = createServer((request, response) => {
  request.resume();
  request.on('end', () => {
    response.writeHead(200, { 'content-type': 'application/json' }).end('{}');
  });
});
server.listen(0, '127.0.0.1', () => {
  const address = server.address();
  const port = typeof address === 'object' ? address?.port : undefined;
  parentPort?.postMessage(`http://127.0.0.1:${port}`, []);
});
parentPort?.once('message', () => {
  server.closeAllConnections();
  server.close();
});
