//! The promises of the crate, on the embedded tier and on real servers.

<<<<<<< HEAD
#[tokio::test(flavor = "multi_thread")]
async fn smoke_redis() {
    let mut child = std::process::Command::new("redis-server")
        .args(["--port", "7777", "--save", ""])
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;
    let redis = Redis::connect("redis://127.0.0.1:7777").await.unwrap();
    run(redis).await;
    child.kill().unwrap();
}
#[tokio::test(flavor = "multi_thread")]
async fn smoke_inprocess() {
    run(InProcess::new()).await
}
async fn run(tier: impl SharedTier + Clone) {
    let loads = Arc::new(AtomicU64::new(0));
    let mk = || {
        let loads = loads.clone();
        Cache::builder(
            "users",
            loader_fn(move |k: u64| {
                let loads = loads.clone();
                async move {
                    loads.fetch_add(1, Ordering::SeqCst);
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    Ok::<_, BoxError>((k < 100).then(|| format!("user {k}")))
                }
            }),
        )
        .l2(tier.clone())
        .build()
        .unwrap()
    };
    let (a, b) = (mk(), mk());
    let t = std::time::Instant::now();
    let (x, y) = tokio::join!(a.get(&42), b.get(&42));
    println!("{:?} {x:?} {y:?}", t.elapsed());
    assert_eq!(loads.load(Ordering::SeqCst), 1);
    println!("{:?}", a.get_entry(&42).await);
    println!("{:?}", b.get_entry(&42).await);
    println!("{:?}", a.get(&420).await);
    a.invalidate(&42).await.unwrap();
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert!(b.peek(&42).is_none());
    a.insert(42, "new".to_string()).await.unwrap();
    println!("{:?}", b.get_entry(&42).await);
    println!("{:#?} {:?}", a.stats(), b.stats());
    println!("{a:?}");
    let t = std::time::Instant::now();
    a.close().await;
    println!("{:?}", t.elapsed());
    println!("{}", std::mem::size_of_val(&b.get(&42)));
}
=======
#[cfg(test)]
mod bytes;
#[cfg(test)]
mod commands;
#[cfg(test)]
mod contract;
#[cfg(test)]
mod fence;
#[cfg(test)]
mod handles;
#[cfg(test)]
mod processes;
#[cfg(test)]
mod support;
#[cfg(test)]
mod trouble;
>>>>>>> helper-b
